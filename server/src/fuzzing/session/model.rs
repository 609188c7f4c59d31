//! The model: accounts, their inboxes, and the outcome of each send. It knows no connection
//! and no store.

use std::collections::BTreeMap;

use bytestring::ByteString;
use hark_protocol::{Code, OkFields};

use super::rights::Rights;
use crate::shard::fuzzing::is_weak;
use crate::store::{AccountEntry, Message, Outcome, PasswordHash};

/// The number of connections.
pub(super) const CONNECTIONS: usize = 3;

/// The names of accounts.
pub(super) const USERS: [&str; 4] = ["d", "a", "b", "c"];

/// The maximum number of accounts at a time.
pub(super) const ACCOUNTS_MAX: usize = 3;

/// The maximum number of messages of an inbox: more than a window holds.
pub(super) const QUEUED_MESSAGES_MAX: usize = 300;

/// The maximum number of bytes of an inbox.
pub(super) const QUEUED_BYTES_MAX: usize = 3000;

/// The longest text, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 400;

/// An account and its messages, distinct from earlier and later ones of its name.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) user: usize,
    pub(super) incarnation: u64,
    pub(super) is_alive: bool,
    pub(super) password: Option<&'static str>,
    /// Whether the server hashed the password itself.
    pub(super) is_strong: bool,
    hash: Option<PasswordHash>,
    /// The stored messages in order, as indices into [`Model::sends`]. Exact only while the
    /// model [`Model::is_certain`].
    pub(super) stored: Vec<usize>,
    /// The number of these that are acknowledged.
    pub(super) acked: usize,
    /// The pushed messages, by number.
    pub(super) pushed: BTreeMap<u64, usize>,
}

/// A send, with all its repeats.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) user: usize,
    /// The recipient, if it existed.
    pub(super) inbox: Option<usize>,
    /// Whether a repeat went to another account of the name: either may hold it.
    pub(super) is_elsewhere: bool,
    pub(super) text: ByteString,
    /// The sender of the first attempt.
    pub(super) sender: Option<usize>,
    /// The stream; sends of one stream to one account keep their order.
    pub(super) stream: usize,
    /// The expected outcome, if it is certain.
    pub(super) expected: Option<Result<(), Code>>,
    pub(super) answered: Option<Outcome>,
}

/// The state of the model, with its history.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) rights: Rights,
    pub(super) inboxes: Vec<Inbox>,
    pub(super) sends: Vec<Sent>,
    /// Whether a commit may have failed, so that outcomes are uncertain.
    pub(super) is_uncertain: bool,
}

impl Model {
    pub(super) const fn new(rights: Rights) -> Self {
        Self {
            rights,
            inboxes: Vec::new(),
            sends: Vec::new(),
            is_uncertain: false,
        }
    }

    pub(super) fn is_certain(&self) -> bool {
        !self.is_uncertain
    }

    /// Marks that a commit may fail: unanswered sends may be decided anew.
    pub(super) fn become_uncertain(&mut self) {
        self.is_uncertain = true;
        self.sends.iter_mut().for_each(|sent| sent.expected = None);
    }

    /// Returns the account of this name.
    pub(super) fn account(&self, user: usize) -> Option<usize> {
        self.inboxes
            .iter()
            .rposition(|inbox| inbox.user == user && inbox.is_alive)
    }

    pub(super) fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self
            .inboxes
            .iter()
            .filter(|i| i.is_alive)
            .map(|i| USERS[i.user])
            .collect();
        names.sort_unstable();
        names
    }

    /// Returns the expected outcome of a `create` of this name.
    pub(super) fn has_room_for(&self, user: usize) -> Result<OkFields, Code> {
        if self.account(user).is_some() {
            Err(Code::Exists)
        } else if self.names().len() == ACCOUNTS_MAX {
            Err(Code::TooMany)
        } else {
            Ok(OkFields::None)
        }
    }

    /// Applies the store's account of a name, and returns whether it has changed. `new` is the
    /// password from then on, if it is the change.
    pub(super) fn found(
        &mut self,
        user: usize,
        entry: Option<AccountEntry>,
        new: Option<&'static str>,
    ) -> bool {
        let known = self.account(user).map(|inbox| &mut self.inboxes[inbox]);
        let Some(AccountEntry {
            account,
            password: hash,
            ..
        }) = entry
        else {
            return known.map(|known| known.is_alive = false).is_some();
        };
        match known {
            Some(known) if known.incarnation == account.incarnation && known.hash == hash => {
                return false;
            }
            Some(known) if known.incarnation == account.incarnation => {
                (known.hash, known.password, known.is_strong) = (hash, new, true);
                return true;
            }
            Some(known) => panic!("{known:?} was replaced by {account:?}"),
            None => {}
        }
        let older = self.inboxes.iter().map(|inbox| inbox.incarnation).max();
        assert!(
            older < Some(account.incarnation),
            "the number of an account was reused"
        );
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

    /// Adds a send, and returns its index.
    pub(super) fn send(
        &mut self,
        user: usize,
        bytes: usize,
        sender: Option<usize>,
        stream: usize,
    ) -> usize {
        let place = self.sends.len();
        // Every text is unique, so that a push identifies its send.
        let text = ByteString::from(format!("{place:.<bytes$}"));
        let inbox = self.account(user);
        let outcome = self.outcome(inbox, sender, &text);
        if let (Ok(()), Some(inbox)) = (outcome, inbox) {
            self.inboxes[inbox].stored.push(place);
        }
        let sender = sender
            .map(|inbox| &self.inboxes[inbox])
            .filter(|inbox| inbox.is_alive);
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

    /// Records a repeat of a send.
    pub(super) fn repeated(&mut self, place: usize) {
        let now = self.account(self.sends[place].user);
        self.sends[place].is_elsewhere |= self.sends[place].inbox != now;
    }

    /// Returns the expected outcome of a send to one account by another.
    fn outcome(&self, inbox: Option<usize>, sender: Option<usize>, text: &str) -> Result<(), Code> {
        let needs_sender = self.rights.require_password;
        if needs_sender && sender.is_none() {
            return Err(Code::Denied);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(Code::TooLarge);
        }
        let Some(inbox) = inbox else {
            return Err(Code::NoSuchUser);
        };
        if needs_sender && !sender.is_some_and(|sender| self.inboxes[sender].is_alive) {
            return Err(Code::Denied);
        }
        let unread = self.unread(inbox);
        let bytes: usize = unread
            .iter()
            .map(|place| self.sends[*place].text.len())
            .sum();
        if unread.len() >= QUEUED_MESSAGES_MAX || bytes + text.len() > QUEUED_BYTES_MAX {
            return Err(Code::QueueFull);
        }
        Ok(())
    }

    /// Returns the unacknowledged messages.
    pub(super) fn unread(&self, inbox: usize) -> &[usize] {
        let Inbox { stored, acked, .. } = &self.inboxes[inbox];
        stored.get(*acked..).unwrap_or_default()
    }

    /// Checks the answer to a send or its repeat.
    pub(super) fn answered(&mut self, place: usize, outcome: Outcome) {
        let sent = &mut self.sends[place];
        if let Outcome::Refused(code) = outcome {
            let codes = [Code::NoSuchUser, Code::QueueFull, Code::TooLarge];
            let is_denied = code == Code::Denied && self.rights.require_password;
            assert!(
                is_denied || codes.contains(&code),
                "{code} answers {sent:?}"
            );
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

    /// Checks a push to a reader of this inbox, and returns the index of its send.
    pub(super) fn pushed(&mut self, inbox: usize, message: &Message) -> usize {
        let place = message.text.trim_end_matches('.').parse::<usize>().ok();
        let sent = place.and_then(|place| self.sends.get(place));
        let (Some(place), Some(sent)) = (place, sent) else {
            panic!("{message:?} was never sent")
        };
        assert_eq!(
            (&message.text, self.inboxes[inbox].user),
            (&sent.text, sent.user)
        );
        // A repeat after a failure comes from an anonymous connection.
        let is_from_nobody =
            message.sender.is_none() && (self.is_uncertain || sent.sender.is_none());
        let sender = message.sender.as_ref().map(|name| name.as_str());
        assert!(
            is_from_nobody || sender == sent.sender.map(|user| USERS[user]),
            "{message:?} of {sent:?}"
        );
        let former = self.inboxes[inbox]
            .pushed
            .insert(message.position.sequence.0, place);
        assert!(
            former.is_none_or(|former| former == place),
            "a number stands for two messages"
        );
        place
    }

    /// Checks that every send answered `ok` was pushed exactly once, in the order of its stream,
    /// and no refused one was. Messages to a deleted account may be missing.
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
