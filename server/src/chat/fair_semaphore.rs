//! FairSemaphore at what only few can do at a time, such as hashing a password. The
//! addresses take turns: from one of them no more wait in line than there are
//! places at the work, and the rest waits behind these. So however many wait
//! from one address, who comes from another is soon served, and it takes as
//! many addresses as [`ADDRESSES_MAX`] to have somebody refused.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Fault;
use crate::limit::network;
use crate::store::Unavailable;

/// Addresses that take turns, at most.
const ADDRESSES_MAX: usize = 256;

/// Who does something, and who waits for it.
#[derive(Debug)]
pub(super) struct FairSemaphore {
    at_once_max: usize,
    at_once: Arc<Semaphore>,
    in_line: AtomicUsize,
    // A lock, since places are given back where a caller is dropped. It is held
    // for one look-up. An address is there while somebody waits in it.
    addresses: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
    /// Why somebody is refused.
    why: &'static str,
}

impl FairSemaphore {
    /// FairSemaphore for so many at a time, at least one; `why` is what is said to who
    /// finds too many in line.
    pub(super) fn new(at_once_max: usize, why: &'static str) -> Self {
        let at_once = Arc::new(Semaphore::new(at_once_max));
        Self { at_once_max, at_once, in_line: AtomicUsize::new(0), addresses: Mutex::default(), why }
    }

    /// Waits for a turn of somebody from `address`. Cancel-safe.
    ///
    /// # Errors
    /// [`hark_protocol::Code::RateLimited`] where too many are in line.
    pub(super) async fn next(&self, address: IpAddr) -> Result<Turn<'_>, Fault> {
        let line = Line::join(self, network(address));
        let from_here = Arc::clone(&line.turns).acquire_owned().await.map_err(|_| Unavailable)?;
        let place = Place::take(self)?;
        let permit = Arc::clone(&self.at_once).acquire_owned().await.map_err(|_| Unavailable)?;
        Ok(Turn { permit: Some(permit), _place: place, _from_here: from_here, _line: line })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn. The next is let in when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    /// `None` while it is with the work.
    permit: Option<OwnedSemaphorePermit>,
    _place: Place<'a>,
    // Before the line, which counts who is in it.
    _from_here: OwnedSemaphorePermit,
    _line: Line<'a>,
}

impl Turn<'_> {
    /// Works on a thread of its own. The turn goes with the work: a caller that
    /// goes away while it runs must not let another begin.
    ///
    /// # Errors
    /// [`Unavailable`] where the work panics.
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

/// The line of those who come from one address. The last to leave removes it.
#[derive(Debug)]
struct Line<'a> {
    of: &'a FairSemaphore,
    address: IpAddr,
    turns: Arc<Semaphore>,
}

impl<'a> Line<'a> {
    fn join(of: &'a FairSemaphore, address: IpAddr) -> Self {
        let mut addresses = of.lock();
        let turns = addresses.entry(address).or_insert_with(|| Arc::new(Semaphore::new(of.at_once_max)));
        Self { of, address, turns: Arc::clone(turns) }
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let mut addresses = self.of.lock();
        // Two are this one and the one in the map.
        if Arc::strong_count(&self.turns) == 2 {
            addresses.remove(&self.address);
        }
    }
}

/// A place in line, given back when it is dropped.
#[derive(Debug)]
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(of: &'a FairSemaphore) -> Result<Self, Fault> {
        let place = Self(&of.in_line);
        if of.in_line.fetch_add(1, Ordering::AcqRel) >= ADDRESSES_MAX * of.at_once_max {
            return Fault::rate_limited(Duration::from_secs(1), of.why);
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
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

    /// A turn that is asked for as often as it is polled, by however many.
    fn next(turns: &FairSemaphore, nth: usize) -> Pin<Box<impl Future<Output = Result<Turn<'_>, Fault>>>> {
        Box::pin(unconstrained(turns.next(address(nth))))
    }

    #[tokio::test]
    async fn who_comes_from_another_address_is_next_however_many_wait_from_one() {
        for at_once_max in [1, 4] {
            let turns = FairSemaphore::new(at_once_max, "too many");
            let mut first = Vec::new();
            for _ in 0..at_once_max {
                first.push(next(&turns, 0).await.unwrap());
            }
            let mut flood: Vec<_> = (0..1000).map(|_| next(&turns, 0)).collect();
            for turn in &mut flood {
                assert!(futures::poll!(turn).is_pending());
            }
            let mut other = next(&turns, 1);
            assert!(futures::poll!(&mut other).is_pending());
            assert_eq!(turns.in_line.load(Ordering::Acquire), at_once_max + 1);
            drop(first.pop());
            assert!(futures::poll!(&mut other).is_ready(), "nobody of the flood goes before");
            drop((flood, other, first));
            assert_eq!(turns.in_line.load(Ordering::Acquire), 0);
            assert!(turns.lock().is_empty());
        }
    }

    #[tokio::test]
    async fn it_takes_256_addresses_to_have_somebody_refused() {
        let turns = FairSemaphore::new(1, "too many");
        let first = next(&turns, 0).await.unwrap();
        let mut waiting: Vec<_> = (1..ADDRESSES_MAX).map(|nth| next(&turns, nth)).collect();
        for turn in &mut waiting {
            assert!(futures::poll!(turn).is_pending());
        }
        let Err(Fault::Refused(refusal)) = next(&turns, ADDRESSES_MAX).await else {
            panic!("not refused");
        };
        assert_eq!(refusal.code, Code::RateLimited);
        assert_eq!(turns.in_line.load(Ordering::Acquire), ADDRESSES_MAX, "the place is given back");
        drop((waiting, first));
        assert!(turns.lock().is_empty(), "and so are the lines");
    }

    #[tokio::test]
    async fn who_goes_away_lets_nobody_in_before_the_work_is_done() {
        let turns = FairSemaphore::new(1, "too many");
        let mut turn = next(&turns, 0).await.unwrap();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let mut working = Box::pin(turn.run_blocking(move || finished.recv().is_ok()));
        assert!(futures::poll!(&mut working).is_pending());
        drop(working);
        drop(turn);
        let mut second = next(&turns, 0);
        assert!(futures::poll!(&mut second).is_pending());
        finish.send(()).unwrap();
        second.await.unwrap();
    }
}
