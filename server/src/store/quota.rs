//! The quota of sessions of each network, so that one network cannot use up all sessions.

use std::collections::HashMap;
use std::net::IpAddr;

/// The number of networks that can use up all sessions together.
const SHARE: usize = 4;

/// The sessions of each network. Bounded by the number of sessions.
#[derive(Debug)]
pub(crate) struct PerNetworkQuota {
    each_max: usize,
    taken: HashMap<IpAddr, usize>,
}

impl PerNetworkQuota {
    /// Returns the quotas for `max` sessions in total.
    pub(crate) fn of(max: usize) -> Self {
        Self {
            each_max: max.div_ceil(SHARE),
            taken: HashMap::new(),
        }
    }

    /// Takes a session. Returns false if the network has used up its quota. `None` has no
    /// quota.
    pub(crate) fn take(&mut self, origin: Option<IpAddr>) -> bool {
        let Some(origin) = origin else { return true };
        let taken = self.taken.get(&origin).copied().unwrap_or_default();
        if taken >= self.each_max {
            return false;
        }
        self.taken.insert(origin, taken + 1);
        true
    }

    /// Returns whether this network has a session.
    #[cfg(test)]
    pub(crate) fn knows(&self, origin: IpAddr) -> bool {
        self.taken.contains_key(&origin)
    }

    /// Releases a session.
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
    fn network_has_a_quarter_of_the_sessions() {
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
