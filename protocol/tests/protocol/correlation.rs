//! The correlation against a model, under any interleaving of callers, replies,
//! deadlines and the end of the link.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use hark_protocol::correlation::{Call, CallError, Correlator, DuplicateId};
use proptest::prelude::*;
use proptest::sample::Index;

/// Serial number of a call, unique in a run.
type Serial = usize;

/// Outcome of a call. The reply is the serial number of its completion.
type End = Result<usize, CallError>;

type Calls = Correlator<u8, u32, usize>;

#[derive(Debug, Clone)]
enum Operation {
    Call(u8, Option<u32>),
    CallBack(u8, Option<u32>),
    Complete(u8),
    Cancel(u8),
    /// Drops one of the retained futures, whether completed or not.
    Drop(Index),
    /// Polls one of the retained futures.
    Poll(Index),
    Expire(u32),
    FailAll,
}

fn operation() -> impl Strategy<Value = Operation> {
    // Few ids and few deadlines, so that they collide.
    let deadline = || proptest::option::of(0..20u32);
    prop_oneof![
        4 => (0..4u8, deadline()).prop_map(|(id, deadline)| Operation::Call(id, deadline)),
        2 => (0..4u8, deadline()).prop_map(|(id, deadline)| Operation::CallBack(id, deadline)),
        3 => (0..5u8).prop_map(Operation::Complete),
        1 => (0..5u8).prop_map(Operation::Cancel),
        3 => any::<Index>().prop_map(Operation::Drop),
        2 => any::<Index>().prop_map(Operation::Poll),
        2 => (0..20u32).prop_map(Operation::Expire),
        1 => Just(Operation::FailAll),
    ]
}

/// Expected state.
#[derive(Default)]
struct Model {
    open: BTreeMap<u8, (Option<u32>, Serial)>,
    /// Outcome of each completed call; `None` if the outcome is delivered to no
    /// waiter.
    ended: BTreeMap<Serial, Option<End>>,
    callbacks: Vec<Serial>,
}

impl Model {
    fn end(&mut self, id: u8, end: Option<End>) -> bool {
        let Some((_, serial)) = self.open.remove(&id) else {
            return false;
        };
        self.ended.insert(serial, end);
        true
    }

    /// Returns the ids that are due at `now`, the earliest deadline first.
    fn due(&self, now: u32) -> Vec<u8> {
        let mut due: Vec<_> = self
            .open
            .iter()
            .filter_map(|(&id, &(deadline, _))| deadline.filter(|&at| at <= now).map(|at| (at, id)))
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }
}

/// The correlator beside its model.
#[derive(Default)]
struct Checked {
    calls: Calls,
    model: Model,
    futures: Vec<(Serial, u8, Call<u8, u32, usize>)>,
    /// Futures that have resolved.
    told: Vec<Serial>,
    /// Outcomes delivered to callbacks, in order.
    called_back: Rc<RefCell<Vec<(Serial, End)>>>,
    serial: Serial,
}

impl Checked {
    fn run(&mut self, operation: &Operation) -> Result<(), TestCaseError> {
        self.serial += 1;
        match *operation {
            Operation::Call(id, deadline) => self.call(id, deadline),
            Operation::CallBack(id, deadline) => self.call_back(id, deadline),
            Operation::Complete(id) => {
                let expected = if self.model.end(id, Some(Ok(self.serial))) {
                    Ok(())
                } else {
                    Err(self.serial)
                };
                prop_assert_eq!(self.calls.complete(&id, self.serial), expected);
                Ok(())
            }
            Operation::Cancel(id) => {
                // A cancelled future resolves; a cancelled callback is dropped.
                let serial = self.model.open.get(&id).map(|&(_, serial)| serial);
                let is_callback =
                    serial.is_some_and(|serial| self.model.callbacks.contains(&serial));
                let end = (!is_callback).then_some(Err(CallError::Closed));
                prop_assert_eq!(self.calls.cancel(&id), self.model.end(id, end));
                Ok(())
            }
            Operation::Drop(_) | Operation::Poll(_) if self.futures.is_empty() => Ok(()),
            Operation::Drop(index) => {
                self.drop_call(index.index(self.futures.len()));
                Ok(())
            }
            Operation::Poll(index) => self.poll(index.index(self.futures.len())),
            Operation::Expire(now) => self.expire(now),
            Operation::FailAll => {
                prop_assert_eq!(self.calls.fail_all(), self.model.open.len());
                while let Some((&id, _)) = self.model.open.first_key_value() {
                    self.model.end(id, Some(Err(CallError::Closed)));
                }
                Ok(())
            }
        }
    }

    fn call(&mut self, id: u8, deadline: Option<u32>) -> Result<(), TestCaseError> {
        match self.calls.call(id, deadline) {
            Ok(call) => {
                prop_assert_eq!(self.model.open.insert(id, (deadline, self.serial)), None);
                self.futures.push((self.serial, id, call));
            }
            Err(DuplicateId) => prop_assert!(self.model.open.contains_key(&id)),
        }
        Ok(())
    }

    fn call_back(&mut self, id: u8, deadline: Option<u32>) -> Result<(), TestCaseError> {
        let (serial, called_back) = (self.serial, Rc::clone(&self.called_back));
        let opened = self.calls.call_back(id, deadline, move |end| {
            called_back.borrow_mut().push((serial, end))
        });
        match opened {
            Ok(()) => {
                prop_assert_eq!(self.model.open.insert(id, (deadline, serial)), None);
                self.model.callbacks.push(serial);
            }
            Err(DuplicateId) => prop_assert!(self.model.open.contains_key(&id)),
        }
        Ok(())
    }

    fn drop_call(&mut self, index: usize) {
        let (serial, id, call) = self.futures.swap_remove(index);
        drop(call);
        if self
            .model
            .open
            .get(&id)
            .is_some_and(|&(_, open)| open == serial)
        {
            self.model.end(id, None);
        }
    }

    /// Polls a call unless it has resolved already.
    fn poll(&mut self, index: usize) -> Result<(), TestCaseError> {
        let (serial, _, call) = &mut self.futures[index];
        if self.told.contains(serial) {
            return Ok(());
        }
        match (poll(call), self.model.ended.get(serial)) {
            (Poll::Pending, None) => {}
            (Poll::Ready(end), Some(expected)) => {
                prop_assert_eq!(Some(end), *expected);
                self.told.push(*serial);
            }
            (polled, expected) => {
                prop_assert!(false, "call {serial}: {polled:?}, not {expected:?}")
            }
        }
        Ok(())
    }

    fn expire(&mut self, now: u32) -> Result<(), TestCaseError> {
        let due = self.model.due(now);
        let told_before = self.called_back.borrow_mut().len();
        prop_assert_eq!(self.calls.expire(&now), due.len());
        let serials: Vec<_> = due.iter().map(|id| self.model.open[id].1).collect();
        let in_order: Vec<_> = serials
            .into_iter()
            .filter(|serial| self.model.callbacks.contains(serial))
            .map(|serial| (serial, Err(CallError::TimedOut)))
            .collect();
        prop_assert_eq!(&self.called_back.borrow_mut()[told_before..], in_order);
        for id in due {
            self.model.end(id, Some(Err(CallError::TimedOut)));
        }
        Ok(())
    }

    /// Checks the invariants after an operation.
    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.calls.pending(), self.model.open.len());
        let next = self
            .model
            .open
            .values()
            .filter_map(|&(deadline, _)| deadline)
            .min();
        prop_assert_eq!(self.calls.next_deadline(), next);
        let mut called_back = self.called_back.borrow_mut().clone();
        called_back.sort_by_key(|&(serial, _)| serial);
        let expected: Vec<_> = self
            .model
            .ended
            .iter()
            .filter(|(serial, _)| self.model.callbacks.contains(serial))
            .filter_map(|(&serial, &end)| end.map(|end| (serial, end)))
            .collect();
        prop_assert_eq!(called_back, expected);
        Ok(())
    }
}

proptest! {
    #[test]
    fn every_call_ends_once_and_leaves_nothing(operations in proptest::collection::vec(operation(), 0..80)) {
        let mut checked = Checked::default();
        for operation in &operations {
            checked.run(operation)?;
            checked.check()?;
        }
        while !checked.futures.is_empty() {
            checked.poll(0)?;
            checked.drop_call(0);
            checked.check()?;
        }
        checked.run(&Operation::FailAll)?;
        checked.check()?;
        prop_assert_eq!(checked.calls.pending(), 0);
    }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn id_is_reusable_once_its_call_ended() {
    let calls = Calls::default();
    let first = calls.call(1, None).unwrap();
    assert_eq!(calls.call(1, None).err(), Some(DuplicateId));
    assert_eq!(calls.complete(&1, 7), Ok(()));
    let mut second = calls.call(1, None).unwrap();
    drop(first);
    assert_eq!(
        calls.pending(),
        1,
        "the end of the first call is not that of the second"
    );
    assert_eq!(calls.complete(&1, 8), Ok(()));
    assert_eq!(poll(&mut second), Poll::Ready(Ok(8)));
}

#[test]
fn late_reply_is_returned() {
    let calls = Calls::default();
    let mut call = calls.call(1, Some(10)).unwrap();
    assert_eq!(calls.expire(&9), 0);
    assert_eq!(calls.expire(&10), 1);
    assert_eq!(calls.complete(&1, 7), Err(7));
    assert_eq!(poll(&mut call), Poll::Ready(Err(CallError::TimedOut)));
}

#[test]
fn callback_may_register_and_end_calls() {
    let calls = Calls::default();
    let inner = calls.clone();
    calls
        .call_back(1, Some(5), move |_| {
            inner.call_back(2, Some(0), |_| {}).unwrap();
            inner.call_back(3, None, |_| {}).unwrap();
            inner.cancel(&3);
        })
        .unwrap();
    assert_eq!(
        calls.expire(&5),
        1,
        "what was opened meanwhile is left for the next time"
    );
    assert_eq!(calls.next_deadline(), Some(0));
    assert_eq!(calls.expire(&5), 1);
    assert_eq!(calls.pending(), 0);
}

#[test]
fn refused_callback_may_hold_a_call() {
    let calls = Calls::default();
    let _open = calls.call(1, None).unwrap();
    let held = calls.call(2, None).unwrap();
    assert_eq!(
        calls.call_back(1, None, move |_| drop(held)),
        Err(DuplicateId)
    );
    assert_eq!(calls.pending(), 1, "the call that it held is cancelled");
}

#[test]
fn ended_call_does_not_cancel_its_successor() {
    let calls = Calls::default();
    let ended = calls.call(1, None).unwrap();
    assert_eq!(calls.complete(&1, 1), Ok(()));
    let mut next = calls.call(1, None).unwrap();
    drop(ended);
    assert_eq!(calls.pending(), 1);
    assert_eq!(calls.complete(&1, 2), Ok(()));
    assert_eq!(poll(&mut next), Poll::Ready(Ok(2)));
}
