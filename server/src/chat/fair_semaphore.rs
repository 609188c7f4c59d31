//! A semaphore that is fair between addresses, for work of which only a few pieces may
//! run at a time, such as hashing a password. The common queue has at most as many
//! requests from each address as may run at once; the others wait in a queue of their
//! address. So a flood from one address delays another by one piece of work, and
//! requests are refused only in a flood from [`ADDRESSES_MAX`] addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Fault;
use crate::limit::network;
use crate::store::Unavailable;
use crate::sync::Mutex;

/// The maximum number of addresses with requests in the queue.
const ADDRESSES_MAX: usize = 256;

/// A semaphore with a queue for each address.
#[derive(Debug)]
pub(super) struct FairSemaphore {
    permits_max: usize,
    permits: Arc<Semaphore>,
    queued: AtomicUsize,
    // Locked because a queue is removed where its last caller is dropped. Held for one
    // look-up. An address has an entry while it has callers.
    addresses: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
    /// The explanation of a refusal.
    explanation: &'static str,
}

impl FairSemaphore {
    /// Returns a semaphore with this many permits, at least one. `explanation` is the
    /// text of a refusal.
    pub(super) fn new(permits_max: usize, explanation: &'static str) -> Self {
        let permits = Arc::new(Semaphore::new(permits_max));
        Self {
            permits_max,
            permits,
            queued: AtomicUsize::new(0),
            addresses: Mutex::default(),
            explanation,
        }
    }

    /// Returns the number of requests that wait for a permit or have one.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Waits for a permit for `address`. Cancel-safe.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] if the queue is full.
    pub(super) async fn acquire(&self, address: IpAddr) -> Result<Permit<'_>, Fault> {
        let queue = AddressQueue::join(self, network(address));
        let head = Arc::clone(&queue.heads)
            .acquire_owned()
            .await
            .map_err(|_| Unavailable)?;
        let slot = QueueSlot::take(self)?;
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| Unavailable)?;
        Ok(Permit {
            permit: Some(permit),
            _slot: slot,
            _head: head,
            _queue: queue,
        })
    }
}

/// A permit, released when it is dropped.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    /// `None` while blocking work holds it.
    permit: Option<OwnedSemaphorePermit>,
    _slot: QueueSlot<'a>,
    // Dropped before the queue, which counts the references to its semaphore.
    _head: OwnedSemaphorePermit,
    _queue: AddressQueue<'a>,
}

impl Permit<'_> {
    /// Runs blocking work on another thread. The work holds the permit, so that a caller
    /// that is dropped meanwhile does not admit another before the work is done.
    ///
    /// # Errors
    /// [`Unavailable`] if the work panics.
    pub(super) async fn run_blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let permit = self.permit.take().ok_or(Unavailable)?;
        let done = tokio::task::spawn_blocking(move || (work(), permit));
        let (result, permit) = done.await.map_err(|_| Unavailable)?;
        self.permit = Some(permit);
        Ok(result)
    }
}

/// The queue of an address. The last caller to leave removes it.
#[derive(Debug)]
struct AddressQueue<'a> {
    semaphore: &'a FairSemaphore,
    address: IpAddr,
    /// Permits to leave this queue for the common one.
    heads: Arc<Semaphore>,
}

impl<'a> AddressQueue<'a> {
    fn join(semaphore: &'a FairSemaphore, address: IpAddr) -> Self {
        let mut addresses = semaphore.addresses.lock();
        let heads = addresses
            .entry(address)
            .or_insert_with(|| Arc::new(Semaphore::new(semaphore.permits_max)));
        Self {
            semaphore,
            address,
            heads: Arc::clone(heads),
        }
    }
}

impl Drop for AddressQueue<'_> {
    fn drop(&mut self) {
        let mut addresses = self.semaphore.addresses.lock();
        // The two references of the last caller: its own and the map's.
        if Arc::strong_count(&self.heads) == 2 {
            addresses.remove(&self.address);
        }
    }
}

/// A slot in the common queue, released when it is dropped.
#[derive(Debug)]
struct QueueSlot<'a>(&'a AtomicUsize);

impl<'a> QueueSlot<'a> {
    fn take(semaphore: &'a FairSemaphore) -> Result<Self, Fault> {
        let slot = Self(&semaphore.queued);
        if semaphore.queued.fetch_add(1, Ordering::AcqRel) >= ADDRESSES_MAX * semaphore.permits_max
        {
            return Fault::rate_limited(Duration::from_secs(1), semaphore.explanation);
        }
        Ok(slot)
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::pin::Pin;

    use hark_protocol::Code;
    use tokio::task::unconstrained;

    use super::*;

    fn address(nth: usize) -> IpAddr {
        Ipv4Addr::from_bits(u32::try_from(nth).unwrap()).into()
    }

    /// Requests a permit for the nth address, free of tokio's task budget.
    fn acquire(
        semaphore: &FairSemaphore,
        nth: usize,
    ) -> Pin<Box<impl Future<Output = Result<Permit<'_>, Fault>>>> {
        Box::pin(unconstrained(semaphore.acquire(address(nth))))
    }

    #[tokio::test]
    async fn flood_from_one_address_does_not_delay_another() {
        for permits_max in [1, 4] {
            let semaphore = FairSemaphore::new(permits_max, "too many");
            let mut first = Vec::new();
            for _ in 0..permits_max {
                first.push(acquire(&semaphore, 0).await.unwrap());
            }
            let mut flood: Vec<_> = (0..1000).map(|_| acquire(&semaphore, 0)).collect();
            for permit in &mut flood {
                assert!(futures::poll!(permit).is_pending());
            }
            let mut other = acquire(&semaphore, 1);
            assert!(futures::poll!(&mut other).is_pending());
            assert_eq!(semaphore.queued.load(Ordering::Acquire), permits_max + 1);
            drop(first.pop());
            assert!(
                futures::poll!(&mut other).is_ready(),
                "served before the flood"
            );
            drop((flood, other, first));
            assert_eq!(semaphore.queued.load(Ordering::Acquire), 0);
            assert!(semaphore.addresses.lock().is_empty());
        }
    }

    #[tokio::test]
    async fn refusal_takes_256_addresses() {
        let semaphore = FairSemaphore::new(1, "too many");
        let first = acquire(&semaphore, 0).await.unwrap();
        let mut waiting: Vec<_> = (1..ADDRESSES_MAX)
            .map(|nth| acquire(&semaphore, nth))
            .collect();
        for permit in &mut waiting {
            assert!(futures::poll!(permit).is_pending());
        }
        let Err(Fault::Refused(refusal)) = acquire(&semaphore, ADDRESSES_MAX).await else {
            panic!("not refused");
        };
        assert_eq!(refusal.code, Code::RateLimited);
        assert_eq!(
            semaphore.queued.load(Ordering::Acquire),
            ADDRESSES_MAX,
            "the slot is released"
        );
        drop((waiting, first));
        assert!(
            semaphore.addresses.lock().is_empty(),
            "the queues are removed"
        );
    }

    #[tokio::test]
    async fn dropped_caller_holds_its_permit_until_work_ends() {
        let semaphore = FairSemaphore::new(1, "too many");
        let mut permit = acquire(&semaphore, 0).await.unwrap();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let mut working = Box::pin(permit.run_blocking(move || finished.recv().is_ok()));
        assert!(futures::poll!(&mut working).is_pending());
        drop(working);
        drop(permit);
        let mut second = acquire(&semaphore, 0);
        assert!(futures::poll!(&mut second).is_pending());
        finish.send(()).unwrap();
        second.await.unwrap();
    }
}
