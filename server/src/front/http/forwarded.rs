//! The rate limits of clients behind a proxy, by their forwarded address: a connection from
//! a proxy carries the requests of many clients.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::chat::{Chat, RateLimiter};
use crate::limit::network;
use crate::sync::Mutex;

/// The maximum number of addresses whose limiters are kept.
const LIMITERS_MAX: usize = 65_536;

/// The limiters of the clients behind proxies.
#[derive(Debug)]
pub(super) struct Forwarded {
    chat: Arc<Chat>,
    // Locked because all requests look up their limiter. Held for one operation on the map,
    // or for a sweep of it.
    limiters: Mutex<HashMap<IpAddr, Arc<RateLimiter>>>,
}

impl Forwarded {
    /// Returns an empty table.
    pub(super) fn new(chat: Arc<Chat>) -> Self {
        Self {
            chat,
            limiters: Mutex::default(),
        }
    }

    /// Returns the limiter of the network of an address; none if it is exempt. While the
    /// table is full of busy clients, new ones share one limiter.
    pub(super) fn limiter(&self, address: IpAddr) -> Option<Arc<RateLimiter>> {
        let new = self.chat.rate_limiter(address)?;
        let mut limiters = self.limiters.lock();
        let mut key = network(address);
        if limiters.len() >= LIMITERS_MAX && !limiters.contains_key(&key) {
            let now = Instant::now();
            limiters.retain(|_, limiter| Arc::strong_count(limiter) > 1 || !limiter.is_full(now));
            if limiters.len() >= LIMITERS_MAX {
                key = IpAddr::from([0, 0, 0, 0]);
            }
        }
        Some(Arc::clone(limiters.entry(key).or_insert(new)))
    }
}
