//! The open responses of `POST /v1/receive`, so that acknowledgements of other requests
//! count for them.

use std::collections::HashMap;
use std::sync::Arc;

use futures::task::AtomicWaker;
use hark_protocol::{DeviceName, RoomName, Sequence, UserName};
use tokio::time::Instant;

use crate::front::call::Call;
use crate::sync::Mutex;

/// A device of a user, the nameless one without a name.
pub(super) type UserDevice = (UserName, Option<DeviceName>);

/// The latest open response of each device.
#[derive(Debug, Default)]
pub(super) struct Receivers {
    // Locked because a receiver is removed where its response is dropped. Held for one
    // operation on the map.
    open: Mutex<HashMap<UserDevice, Arc<Receiver>>>,
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
    /// Adds the response of a device. It replaces a former one, which has been taken over.
    pub(super) fn open(&self, device: &UserDevice, call: Call) -> Arc<Receiver> {
        let receiver = Arc::new(Receiver {
            delivery: Mutex::new(Delivery {
                call,
                owing_since: None,
            }),
            waker: AtomicWaker::new(),
        });
        self.open
            .lock()
            .insert(device.clone(), Arc::clone(&receiver));
        receiver
    }

    /// Removes the response of a device, unless another one has replaced it.
    pub(super) fn close(&self, device: &UserDevice, receiver: &Arc<Receiver>) {
        let mut open = self.open.lock();
        if open
            .get(device)
            .is_some_and(|current| Arc::ptr_eq(current, receiver))
        {
            open.remove(device);
        }
    }

    /// Acknowledges the messages of a log on an open response. Returns false if there is
    /// none, or the message was not sent on it.
    pub(super) fn acknowledge(
        &self,
        device: &UserDevice,
        log: Option<&RoomName>,
        number: Sequence,
    ) -> bool {
        let receiver = self.open.lock().get(device).map(Arc::clone);
        receiver.is_some_and(|receiver| receiver.acknowledge(log, number))
    }
}

impl Receiver {
    fn acknowledge(&self, log: Option<&RoomName>, number: Sequence) -> bool {
        let mut delivery = self.delivery.lock();
        let connection = &mut delivery.call.connection;
        let is_acknowledged = connection.acknowledge(log, number).is_ok();
        if is_acknowledged {
            let is_owing = delivery.call.connection.awaits_ack();
            delivery.owing_since = is_owing.then(Instant::now);
        }
        drop(delivery);
        self.waker.wake();
        is_acknowledged
    }
}
