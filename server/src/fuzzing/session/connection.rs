//! One connection: the server's side, and the state of its client.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytestring::ByteString;
use hark_protocol::limits::WINDOW_MESSAGES_MAX;
use hark_protocol::{ByeReason, Failure, Reply, Request, RequestId, Sequence, UserName};
use tokio::time::Instant;

use super::model::{Model, USERS};
use crate::chat::{Chat, ClientConnection, Output, ShutdownSignal};
use crate::store::{Message, Outcome};

/// The first id of requests other than sends.
const OTHER_IDS: u32 = 1 << 31;

/// The fill level of a window at which the server owes the reader no further push.
const WINDOW_LOW: usize = WINDOW_MESSAGES_MAX * 3 / 4;

#[derive(Debug, Default)]
pub(super) struct Connection {
    /// `None` once it is closed.
    pub(super) client_connection: Option<ClientConnection>,
    /// The client whose session it sends in.
    pub(super) client: Option<usize>,
    pub(super) stream: usize,
    pub(super) user: Option<usize>,
    /// Whether that account had a password at login.
    pub(super) by_password: bool,
    /// The account of a `login` or `connect` in flight, and whether it is a `connect`.
    pub(super) entering: Option<(usize, bool)>,
    pub(super) receiving: Option<Reading>,
    /// The account of the latest `connect`.
    pub(super) reader: Option<usize>,
    /// The pushes since then: the number, and the index in the inbox.
    pub(super) pushed: Vec<(Sequence, usize)>,
    /// The number of these that are acknowledged here.
    pub(super) acked: usize,
    byes: Vec<ByeReason>,
    pub(super) byes_expected: Vec<ByeReason>,
    /// The latest id of its sends, if they are in no session.
    pub(super) last_id: u32,
    last_other_id: u32,
    sends: BTreeMap<RequestId, usize>,
    unanswered: usize,
    asked: Option<RequestId>,
    pub(super) replies: Vec<Reply>,
    /// Whether a send of its session was answered `unavailable`.
    is_fenced: bool,
    /// The wrong passwords tried on this connection.
    pub(super) wrong: [usize; USERS.len()],
}

/// The reading of an inbox.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    inbox: usize,
    /// The number of its messages that are pushed, or were acknowledged before.
    next: usize,
}

impl Connection {
    pub(super) fn open(chat: Arc<Chat>, number: u32, client: Option<usize>, stream: usize) -> Self {
        let address = IpAddr::V4(Ipv4Addr::from_bits(
            Ipv4Addr::new(100, 64, 0, 0).to_bits() + number,
        ));
        let connection = ClientConnection::new(chat, address, Arc::<ShutdownSignal>::default());
        Self {
            client_connection: Some(connection),
            client,
            stream,
            ..Self::default()
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.client_connection.is_none()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.client_connection
            .as_ref()
            .is_some_and(ClientConnection::is_ready)
    }

    pub(super) fn is_answered(&self) -> bool {
        self.asked.is_none()
    }

    pub(super) fn has_its_byes(&self) -> bool {
        self.byes == self.byes_expected
    }

    /// Returns the account that it receives for.
    pub(super) fn reads(&self) -> Option<usize> {
        self.receiving.map(|reading| reading.inbox)
    }

    /// Returns whether no further output is due.
    pub(super) fn is_settled(&self, model: &Model) -> bool {
        let is_answered = self.unanswered == 0 && self.asked.is_none();
        let is_read = self.receiving.is_none_or(|Reading { inbox, next }| {
            next == model.inboxes[inbox].stored.len() || self.pushed.len() - self.acked > WINDOW_LOW
        });
        self.is_lost()
            || (is_answered
                && !self.is_fenced
                && (model.is_uncertain || (is_read && self.has_its_byes())))
    }

    /// Returns whether its window has room, so that a push may be due.
    pub(super) fn may_get_more(&self, model: &Model) -> bool {
        let is_behind =
            |reading: &Reading| reading.next < model.inboxes[reading.inbox].stored.len();
        model.is_certain() && self.receiving.as_ref().is_some_and(is_behind)
    }

    pub(super) fn ask(&mut self, request: Request) {
        let Some(connection) = &mut self.client_connection else {
            return;
        };
        self.last_other_id += 1;
        self.asked = RequestId::new(OTHER_IDS + self.last_other_id);
        self.replies.clear();
        connection.handle(self.asked, Ok(request));
    }

    /// Returns the last reply, unless the outcome is unknown.
    pub(super) fn take_reply(&mut self) -> Option<Reply> {
        let is_known = self.asked.take().is_none();
        let reply = self.replies.pop().filter(|_| is_known)?;
        match reply {
            Reply::Error {
                failure: Failure::Unavailable,
                ..
            } => None,
            reply => Some(reply),
        }
    }

    pub(super) fn send(&mut self, id: RequestId, place: usize, user: UserName, text: ByteString) {
        let connection = self.client_connection.as_mut().expect("an open connection");
        self.sends.insert(id, place);
        self.unanswered += 1;
        connection.handle(Some(id), Ok(Request::Send { user, text }));
        // The model has one order of all requests.
        connection.flush_sends();
    }

    /// Ready after an output, or the end of the connection.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        model: &mut Model,
    ) -> Poll<()> {
        let Some(connection) = &mut self.client_connection else {
            return Poll::Pending;
        };
        if connection.poll_abort(cx).is_ready() {
            self.client_connection = None;
            return Poll::Ready(());
        }
        connection.poll(cx, now).map(|output| match output {
            Output::Reply(Some(id), reply) if self.asked == Some(id) => {
                self.handle_reply(reply, model)
            }
            Output::Reply(Some(id), reply) => self.handle_answer(id, reply, model),
            Output::Reply(None, reply) => panic!("unsolicited {reply:?}"),
            Output::Push(message) => self.handle_push(&message, model),
            Output::Said(_) | Output::Notice(_) => panic!("a push of a room"),
            Output::Bye(reason) => self.handle_bye(reason, model),
            Output::Close => self.client_connection = None,
        })
    }

    fn handle_reply(&mut self, reply: Reply, model: &Model) {
        if !matches!(reply, Reply::List(_)) {
            self.asked = None;
        }
        if let (Reply::Ok(_), Some((inbox, receives))) = (&reply, self.entering.take()) {
            if receives {
                self.receiving = Some(Reading {
                    inbox,
                    next: model.inboxes[inbox].acked,
                });
                (self.reader, self.acked) = (Some(inbox), 0);
                self.pushed.clear();
            } else if self.user != Some(inbox) {
                self.receiving = None;
            }
            self.user = Some(inbox);
            self.by_password = model.inboxes[inbox].password.is_some();
        }
        self.replies.push(reply);
    }

    /// Compares the answer to a send with the model.
    fn handle_answer(&mut self, id: RequestId, reply: Reply, model: &mut Model) {
        let place = self
            .sends
            .get(&id)
            .copied()
            .expect("a send of this connection");
        self.unanswered -= 1;
        let outcome = match reply {
            Reply::Ok(fields) => Outcome::Stored(
                fields
                    .as_stored()
                    .expect("a send is answered by its number"),
            ),
            Reply::NotOk(refusal) => Outcome::Refused(refusal.code),
            Reply::Error {
                failure: Failure::Unavailable,
                ..
            } => {
                assert!(model.is_uncertain, "unavailable without a failure");
                self.is_fenced = self.client.is_some();
                return;
            }
            other => panic!("{other:?} answers a send"),
        };
        assert!(
            !self.is_fenced,
            "a send was decided behind an undecided one"
        );
        model.answered(place, outcome);
    }

    fn handle_push(&mut self, message: &Message, model: &mut Model) {
        let reading = self.receiving.as_mut().expect("a receiving connection");
        let place = model.pushed(reading.inbox, message);
        let sequence = message.position.sequence;
        assert!(
            self.pushed.last().is_none_or(|(last, _)| *last < sequence),
            "out of order"
        );
        if model.is_certain() {
            let next = model.inboxes[reading.inbox].stored.get(reading.next);
            assert_eq!(next, Some(&place), "a message was skipped or repeated");
        }
        reading.next += 1;
        self.pushed.push((sequence, reading.next));
        assert!(
            self.pushed.len() - self.acked <= WINDOW_MESSAGES_MAX,
            "more than a window"
        );
    }

    fn handle_bye(&mut self, reason: ByeReason, model: &Model) {
        let reading = self.receiving.take();
        assert!(
            reading.is_some() || model.is_uncertain,
            "a bye to a connection that does not receive"
        );
        if reason == ByeReason::Deleted {
            self.user = None;
        }
        self.byes.push(reason);
    }
}
