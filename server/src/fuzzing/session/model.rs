//! What ought to be: accounts, their inboxes, and what became of each send. It
//! knows no connection and no store.

use std::collections::BTreeMap;

use bytestring::ByteString;
use hark_protocol::{Code, OkFields};

use super::rights::Rights;
use crate::shard::fuzzing::is_weak;
use crate::store::{AccountEntry, Message, Outcome, PasswordHash};

/// Connections at a time.
pub(super) const CONNECTIONS: usize = 3;

/// The names that there may be.
pub(super) const USERS: [&str; 4] = ["d", "a", "b", "c"];

/// Accounts that there may be at a time.
pub(super) const ACCOUNTS_MAX: usize = 3;

/// Messages that an inbox may hold: more than a window does.
pub(super) const QUEUED_MESSAGES_MAX: usize = 300;

/// Bytes that an inbox may hold.
pub(super) const QUEUED_BYTES_MAX: usize = 3000;

/// The longest text.
pub(super) const TEXT_BYTES_MAX: usize = 400;

/// An account with what was sent to it; one of that name before or after it is
/// another.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) user: usize,
    pub(super) incarnation: u64,
    pub(super) is_alive: bool,
    pub(super) password: Option<&'static str>,
    /// The server has hashed the password.
    pub(super) is_strong: bool,
    hash: Option<PasswordHash>,
    /// What is stored, as places in [`Model::sends`], in order. Right only while
    /// the model [`Model::is_certain`].
    pub(super) stored: Vec<usize>,
    /// How many of these are acknowledged.
    pub(super) acked: usize,
    /// What was pushed, by its number.
    pub(super) pushed: BTreeMap<u64, usize>,
}

/// One send, with all its repeats.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) user: usize,
    /// To which account, if there was one.
    pub(super) inbox: Option<usize>,
    /// A repeat was for another account: it may be in either.
    pub(super) is_elsewhere: bool,
    pub(super) text: ByteString,
    /// The name of the account that sent it first.
    pub(super) sender: Option<usize>,
    /// Sends of one stream to one account keep their order.
    pub(super) stream: usize,
    /// What it has to be answered, where that is certain.
    pub(super) expected: Option<Result<(), Code>>,
    pub(super) answered: Option<Outcome>,
}

/// What there is, and what was.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) rights: Rights,
    pub(super) inboxes: Vec<Inbox>,
    pub(super) sends: Vec<Sent>,
    /// A commit may have failed: it is not known what each send has to be
    /// answered.
    pub(super) is_uncertain: bool,
}

impl Model {
    pub(super) const fn new(rights: Rights) -> Self {
        Self { rights, inboxes: Vec::new(), sends: Vec::new(), is_uncertain: false }
    }

    pub(super) fn is_certain(&self) -> bool {
        !self.is_uncertain
    }

    /// From now on a commit may fail: what is not answered may be decided anew.
    pub(super) fn become_uncertain(&mut self) {
        self.is_uncertain = true;
        self.sends.iter_mut().for_each(|sent| sent.expected = None);
    }

    /// The account of this name.
    pub(super) fn account(&self, user: usize) -> Option<usize> {
        self.inboxes.iter().rposition(|inbox| inbox.user == user && inbox.is_alive)
    }

    pub(super) fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.inboxes.iter().filter(|i| i.is_alive).map(|i| USERS[i.user]).collect();
        names.sort_unstable();
        names
    }

    /// What the store has to say to a `create` of this name.
    pub(super) fn has_room_for(&self, user: usize) -> Result<OkFields, Code> {
        if self.account(user).is_some() {
            Err(Code::Exists)
        } else if self.names().len() == ACCOUNTS_MAX {
            Err(Code::TooMany)
        } else {
            Ok(OkFields::none())
        }
    }

    /// The store has this under a name: whether that is something new. `new` is
    /// the password from then on, where that is what is new.
    pub(super) fn found(
        &mut self,
        user: usize,
        entry: Option<AccountEntry>,
        new: Option<&'static str>,
    ) -> bool {
        let known = self.account(user).map(|inbox| &mut self.inboxes[inbox]);
        let Some(AccountEntry { account, password: hash }) = entry else {
            return known.map(|known| known.is_alive = false).is_some();
        };
        match known {
            Some(known) if known.incarnation == account.incarnation && known.hash == hash => return false,
            Some(known) if known.incarnation == account.incarnation => {
                (known.hash, known.password, known.is_strong) = (hash, new, true);
                return true;
            }
            Some(known) => panic!("{known:?} was replaced by {account:?}"),
            None => {}
        }
        let older = self.inboxes.iter().map(|inbox| inbox.incarnation).max();
        assert!(older < Some(account.incarnation), "the number of an account was given twice");
        self.inboxes.push(Inbox {
            user,
            incarnation: account.incarnation,
            is_alive: true,
            password: hash.as_ref().and(new),
            is_strong: hash.as_ref().is_some_and(|hash| !is_weak(hash)),
            hash,
            stored: Vec::new(),
            acked: 0,
            pushed: BTreeMap::new(),
        });
        true
    }

    /// A new send, to be asked now: its place.
    pub(super) fn send(&mut self, user: usize, bytes: usize, sender: Option<usize>, stream: usize) -> usize {
        let place = self.sends.len();
        // No two are alike, so that each is known again.
        let text = ByteString::from(format!("{place:.<bytes$}"));
        let inbox = self.account(user);
        let outcome = self.outcome(inbox, sender, &text);
        if let (Ok(()), Some(inbox)) = (outcome, inbox) {
            self.inboxes[inbox].stored.push(place);
        }
        let sender = sender.map(|inbox| &self.inboxes[inbox]).filter(|inbox| inbox.is_alive);
        let sender = sender.map(|inbox| inbox.user);
        let expected = self.is_certain().then_some(outcome);
        self.sends.push(Sent {
            user,
            inbox,
            is_elsewhere: false,
            text,
            sender,
            stream,
            expected,
            answered: None,
        });
        place
    }

    /// A send is asked once more.
    pub(super) fn repeated(&mut self, place: usize) {
        let now = self.account(self.sends[place].user);
        self.sends[place].is_elsewhere |= self.sends[place].inbox != now;
    }

    /// What the store has to decide of a send, to this account by this one.
    fn outcome(&self, inbox: Option<usize>, sender: Option<usize>, text: &str) -> Result<(), Code> {
        let needs_sender = self.rights.require_password;
        if needs_sender && sender.is_none() {
            return Err(Code::Denied);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(Code::TooLarge);
        }
        let Some(inbox) = inbox else { return Err(Code::NoSuchUser) };
        if needs_sender && !sender.is_some_and(|sender| self.inboxes[sender].is_alive) {
            return Err(Code::Denied);
        }
        let unread = self.unread(inbox);
        let bytes: usize = unread.iter().map(|place| self.sends[*place].text.len()).sum();
        if unread.len() >= QUEUED_MESSAGES_MAX || bytes + text.len() > QUEUED_BYTES_MAX {
            return Err(Code::QueueFull);
        }
        Ok(())
    }

    /// What is stored and not acknowledged.
    pub(super) fn unread(&self, inbox: usize) -> &[usize] {
        let Inbox { stored, acked, .. } = &self.inboxes[inbox];
        stored.get(*acked..).unwrap_or_default()
    }

    /// A send is answered, or once more.
    pub(super) fn answered(&mut self, place: usize, outcome: Outcome) {
        let sent = &mut self.sends[place];
        if let Outcome::Refused(code) = outcome {
            let codes = [Code::NoSuchUser, Code::QueueFull, Code::TooLarge];
            let is_denied = code == Code::Denied && self.rights.require_password;
            assert!(is_denied || codes.contains(&code), "{code} answers {sent:?}");
        }
        if let Some(former) = sent.answered {
            assert_eq!(outcome, former, "the answer to {sent:?}");
        }
        if let Some(expected) = sent.expected {
            let decided = match outcome {
                Outcome::Stored(_) => Ok(()),
                Outcome::Refused(code) => Err(code),
            };
            assert_eq!(decided, expected, "the answer to {sent:?}");
        }
        sent.answered = Some(outcome);
    }

    /// A message is pushed to a reader of this inbox: which send it is.
    pub(super) fn pushed(&mut self, inbox: usize, message: &Message) -> usize {
        let place = message.text.trim_end_matches('.').parse::<usize>().ok();
        let sent = place.and_then(|place| self.sends.get(place));
        let (Some(place), Some(sent)) = (place, sent) else { panic!("nobody sent {message:?}") };
        assert_eq!((&message.text, self.inboxes[inbox].user), (&sent.text, sent.user));
        // A repeat after a failure comes from a connection that is nobody.
        let is_from_nobody = message.sender.is_none() && (self.is_uncertain || sent.sender.is_none());
        let sender = message.sender.as_ref().map(|name| name.as_str());
        assert!(is_from_nobody || sender == sent.sender.map(|user| USERS[user]), "{message:?} of {sent:?}");
        let former = self.inboxes[inbox].pushed.insert(message.position.sequence.0, place);
        assert!(former.is_none_or(|former| former == place), "a number stands for two messages");
        place
    }

    /// All that was answered `ok` was pushed exactly once, in the order of each
    /// stream, and nothing that was refused was. Only what was acknowledged in
    /// time or read in the end can be there of an account that has ended.
    pub(super) fn check_promise(&self) {
        let mut times: BTreeMap<usize, usize> = BTreeMap::new();
        for inbox in &self.inboxes {
            let mut latest: BTreeMap<usize, usize> = BTreeMap::new();
            for place in inbox.pushed.values() {
                *times.entry(*place).or_default() += 1;
                let former = latest.insert(self.sends[*place].stream, *place);
                assert!(former < Some(*place), "{former:?} came before {place}");
            }
        }
        for (place, sent) in self.sends.iter().enumerate() {
            let times = times.get(&place).copied().unwrap_or(0);
            assert!(times <= 1, "{sent:?} came {times} times");
            let is_alive = sent.inbox.is_some_and(|inbox| self.inboxes[inbox].is_alive);
            let is_readable = is_alive && !sent.is_elsewhere;
            match sent.answered {
                Some(Outcome::Stored(sequence)) if is_readable => {
                    let inbox = sent.inbox.map(|inbox| &self.inboxes[inbox]);
                    let numbered = inbox.and_then(|inbox| inbox.pushed.get(&sequence.0));
                    assert_eq!((times, numbered), (1, Some(&place)), "{sent:?}");
                }
                Some(Outcome::Refused(_)) => assert_eq!(times, 0, "{sent:?}"),
                _ => {}
            }
        }
    }
}
