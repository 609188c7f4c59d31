//! The quota of sessions of each network: no network takes all sessions and keeps
//! the others from sending.

use std::collections::HashMap;
use std::net::IpAddr;

/// One network has at most one in so many of all.
const SHARE: usize = 4;

/// Counts by network. It holds no more networks than there are sessions.
#[derive(Debug)]
pub(crate) struct PerNetworkQuota {
    each_max: usize,
    taken: HashMap<IpAddr, usize>,
}

impl PerNetworkQuota {
    /// PerNetworkQuota of so many in all.
    pub(crate) fn of(max: usize) -> Self {
        Self { each_max: max.div_ceil(SHARE), taken: HashMap::new() }
    }

    /// Takes one. Returns false if this network has its quota. `None` does not count.
    pub(crate) fn take(&mut self, origin: Option<IpAddr>) -> bool {
        let Some(origin) = origin else { return true };
        let taken = self.taken.get(&origin).copied().unwrap_or_default();
        if taken >= self.each_max {
            return false;
        }
        self.taken.insert(origin, taken + 1);
        true
    }

    /// Whether this network has one.
    #[cfg(test)]
    pub(crate) fn knows(&self, origin: IpAddr) -> bool {
        self.taken.contains_key(&origin)
    }

    /// Gives one back that was taken.
    pub(crate) fn give_back(&mut self, origin: Option<IpAddr>) {
        let Some(origin) = origin else { return };
        if let Some(taken) = self.taken.get_mut(&origin) {
            *taken -= 1;
            if *taken == 0 {
                self.taken.remove(&origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_a_quarter_and_gets_back_what_it_gave() {
        let mut shares = PerNetworkQuota::of(8);
        let [a, b] = [1, 2].map(|last| Some(IpAddr::from([192, 0, 2, last])));
        assert!(shares.take(a) && shares.take(a) && !shares.take(a));
        assert!(shares.take(b) && shares.take(None));
        shares.give_back(a);
        assert!(shares.take(a) && !shares.take(a));
        shares.give_back(b);
        assert_eq!(shares.taken.len(), 1);
    }
}
