//! The limits of clients behind a proxy, by their forwarded address: a connection from a
//! proxy carries the requests of many clients. The requests of a client that are open at the
//! same time are limited as the connections of an address are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hark_protocol::{Code, Refusal};
use tokio::time::Instant;

use crate::chat::{Chat, RateLimiter};
use crate::limit::network;
use crate::sync::Mutex;

/// The maximum number of networks that are kept.
const NETWORKS_MAX: usize = 65_536;

/// The limits of the clients behind proxies.
#[derive(Debug)]
pub(super) struct Forwarded {
    chat: Arc<Chat>,
    /// The maximum number of open requests of a network.
    requests_max: AtomicUsize,
    // Locked because all requests look up their network. Held for one operation on the map,
    // or for a sweep of it.
    networks: Mutex<HashMap<IpAddr, ForwardedNetwork>>,
}

#[derive(Debug)]
struct ForwardedNetwork {
    limiter: Arc<RateLimiter>,
    /// The number of its open requests, WebSockets included.
    open: usize,
}

/// An open request of a client behind a proxy, counted until it is dropped.
#[derive(Debug)]
pub(in crate::front) struct ForwardedRequest {
    forwarded: Arc<Forwarded>,
    network: IpAddr,
    limiter: Arc<RateLimiter>,
}

impl Forwarded {
    /// Returns an empty table.
    pub(super) fn new(chat: Arc<Chat>) -> Self {
        Self {
            chat,
            requests_max: AtomicUsize::new(usize::MAX),
            networks: Mutex::default(),
        }
    }

    /// Sets the maximum number of open requests of a network.
    pub(super) fn set_requests_max(&self, requests_max: usize) {
        self.requests_max.store(requests_max, Ordering::Relaxed);
    }

    /// Counts a request from an address; `None` if that is exempt from limits. While the
    /// table is full of busy networks, new ones share one entry.
    ///
    /// # Errors
    /// [`Code::TooMany`] if the network of the address has too many open requests.
    pub(super) fn begin(
        self: &Arc<Self>,
        address: IpAddr,
    ) -> Result<Option<Arc<ForwardedRequest>>, Refusal> {
        let Some(new) = self.chat.rate_limiter(address) else {
            return Ok(None);
        };
        let mut networks = self.networks.lock();
        let mut network = network(address);
        if networks.len() >= NETWORKS_MAX && !networks.contains_key(&network) {
            let now = Instant::now();
            networks.retain(|_, known| known.open > 0 || !known.limiter.is_full(now));
            if networks.len() >= NETWORKS_MAX {
                network = IpAddr::from([0, 0, 0, 0]);
            }
        }
        let entry = networks.entry(network).or_insert(ForwardedNetwork {
            limiter: new,
            open: 0,
        });
        if entry.open >= self.requests_max.load(Ordering::Relaxed) {
            let why = "too many open requests from your address; end one and try again";
            return Err(Refusal::new(Code::TooMany, why));
        }
        entry.open += 1;
        let limiter = Arc::clone(&entry.limiter);
        let forwarded = Arc::clone(self);
        Ok(Some(Arc::new(ForwardedRequest {
            forwarded,
            network,
            limiter,
        })))
    }
}

impl ForwardedRequest {
    /// Returns the rate limiter of its network.
    pub(super) fn limiter(&self) -> Arc<RateLimiter> {
        Arc::clone(&self.limiter)
    }
}

impl Drop for ForwardedRequest {
    fn drop(&mut self) {
        let mut networks = self.forwarded.networks.lock();
        if let Some(entry) = networks.get_mut(&self.network) {
            entry.open = entry.open.saturating_sub(1);
        }
    }
}
