//! Completions that wait until their frame is durable.

use hark_protocol::{Code, SessionToken};

use crate::store::{
    Completer, Created, DeviceSubscription, Fence, InboxInfo, Outcome, Purged, RoomAnswer,
    Subscription, Unavailable, UserLimits,
};

/// The completion of a send that waits for its commit.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) completer: Completer<Outcome>,
    pub(super) outcome: Result<Outcome, Unavailable>,
    pub(super) fence: Option<Fence>,
}

impl Sent {
    /// Completes it.
    pub(super) fn complete(self) {
        self.completer.complete(self.outcome);
    }

    /// Completes the send as unavailable, and closes the fence against later sends of its
    /// connection.
    pub(super) fn fail(self) {
        if let Some(fence) = self.fence {
            fence.close();
        }
        self.completer.complete(Err(Unavailable));
    }
}

/// Another completion that waits for its commit.
#[derive(Debug)]
pub(super) enum Completion {
    Created(Completer<Created>, Created),
    Flag(Completer<bool>, bool),
    Subscribed(Completer<Option<Subscription>>, Option<Subscription>),
    Opened(SessionToken, Completer<bool>, bool),
    Inspected(Completer<Vec<InboxInfo>>, Vec<InboxInfo>),
    Limited(Completer<Option<UserLimits>>, Option<UserLimits>),
    Purged(Completer<Purged>, Purged),
    Room(
        Completer<Result<RoomAnswer, Code>>,
        Result<RoomAnswer, Code>,
    ),
    Attached(
        Completer<Result<DeviceSubscription, Code>>,
        Result<DeviceSubscription, Code>,
    ),
}

impl Completion {
    /// Completes it.
    pub(super) fn complete(self) {
        match self {
            Self::Created(completer, created) => completer.complete(Ok(created)),
            Self::Flag(completer, flag) | Self::Opened(_, completer, flag) => {
                completer.complete(Ok(flag))
            }
            Self::Subscribed(completer, subscription) => completer.complete(Ok(subscription)),
            Self::Inspected(completer, inboxes) => completer.complete(Ok(inboxes)),
            Self::Limited(completer, limits) => completer.complete(Ok(limits)),
            Self::Purged(completer, purged) => completer.complete(Ok(purged)),
            Self::Room(completer, answer) => completer.complete(Ok(answer)),
            Self::Attached(completer, subscription) => completer.complete(Ok(subscription)),
        }
    }

    /// Completes it as unavailable. Returns a session that was opened and is unused.
    pub(super) fn fail(self) -> Option<SessionToken> {
        match self {
            Self::Created(completer, _) => completer.complete(Err(Unavailable)),
            Self::Flag(completer, _) => completer.complete(Err(Unavailable)),
            Self::Subscribed(completer, _) => completer.complete(Err(Unavailable)),
            Self::Inspected(completer, _) => completer.complete(Err(Unavailable)),
            Self::Limited(completer, _) => completer.complete(Err(Unavailable)),
            Self::Purged(completer, _) => completer.complete(Err(Unavailable)),
            Self::Room(completer, _) => completer.complete(Err(Unavailable)),
            Self::Attached(completer, _) => completer.complete(Err(Unavailable)),
            Self::Opened(token, completer, is_open) => {
                completer.complete(Err(Unavailable));
                return is_open.then_some(token);
            }
        }
        None
    }
}
