//! The open responses of `POST /v1/receive`, so that acknowledgements of other requests
//! count for them.

use std::collections::HashMap;
use std::sync::Arc;

use futures::task::AtomicWaker;
use hark_protocol::{Sequence, UserName};
use tokio::time::Instant;

use crate::front::call::Call;
use crate::sync::Mutex;

/// The latest open response of each user.
#[derive(Debug, Default)]
pub(super) struct Receivers {
    // Locked because a receiver is removed where its response is dropped. Held for one
    // operation on the map.
    open: Mutex<HashMap<UserName, Arc<Receiver>>>,
}

/// The delivery behind an open response.
#[derive(Debug)]
pub(super) struct Receiver {
    // Locked because acknowledgements come from other requests. Held for one piece of the
    // response or one acknowledgement.
    pub(super) delivery: Mutex<Delivery>,
    /// Wakes the response when an acknowledgement makes room.
    pub(super) waker: AtomicWaker,
}

/// The state of a delivery.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) call: Call,
    /// The time since which the client owes acknowledgements: that of the latest one, or of
    /// the first message after it.
    pub(super) owing_since: Option<Instant>,
}

impl Receivers {
    /// Adds the response of a user. It replaces a former one, which has been taken over.
    pub(super) fn open(&self, user: &UserName, call: Call) -> Arc<Receiver> {
        let receiver = Arc::new(Receiver {
            delivery: Mutex::new(Delivery {
                call,
                owing_since: None,
            }),
            waker: AtomicWaker::new(),
        });
        self.open.lock().insert(user.clone(), Arc::clone(&receiver));
        receiver
    }

    /// Removes the response of a user, unless another one has replaced it.
    pub(super) fn close(&self, user: &UserName, receiver: &Arc<Receiver>) {
        let mut open = self.open.lock();
        if open
            .get(user)
            .is_some_and(|current| Arc::ptr_eq(current, receiver))
        {
            open.remove(user);
        }
    }

    /// Acknowledges the messages of an open response. Returns false if there is none, or
    /// the message was not sent on it.
    pub(super) fn acknowledge(&self, user: &UserName, number: Sequence) -> bool {
        let receiver = self.open.lock().get(user).map(Arc::clone);
        receiver.is_some_and(|receiver| receiver.acknowledge(number))
    }
}

impl Receiver {
    fn acknowledge(&self, number: Sequence) -> bool {
        let mut delivery = self.delivery.lock();
        let is_acknowledged = delivery.call.connection.acknowledge(number).is_ok();
        if is_acknowledged {
            let is_owing = delivery.call.connection.awaits_ack();
            delivery.owing_since = is_owing.then(Instant::now);
        }
        drop(delivery);
        self.waker.wake();
        is_acknowledged
    }
}
