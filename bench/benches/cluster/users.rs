//! Many users: idle ones, those of a killed server, and those with queued messages.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use hark_protocol::{Reply, Request};
use hark_tests::name;

use super::load::{AT_ONCE, Link, each, send_all};
use super::{Bench, STREAMS, TEXT_BYTES, create_users, median, server, user};

/// Users to drain, and messages queued for each.
pub(super) const READERS: usize = 1_000;
const QUEUED: u32 = 100;

/// Connected users that do nothing, and how long they are watched.
const IDLE: usize = 8_000;
const WATCHED: Duration = Duration::from_secs(10);

/// Users of a server that is killed.
const RETURNING: usize = 3_500;

impl Bench {
    /// Measures the processor time of the nodes without users and with idle ones.
    pub(super) async fn idle(&self) {
        println!("\n{IDLE} idle users");
        let addresses = self.addresses();
        self.users(IDLE).await;
        let without = self.load_of_nodes().await;
        let users = (0..IDLE).map(|n| receiving(addresses[n % 2], n));
        let users = join_all(users).await;
        let with = self.load_of_nodes().await;
        println!(
            "{:>12}: {without:.2} % of a processor without them, {with:.2} % with them",
            "nodes"
        );
        drop(users);
    }

    /// Returns the processor time of the nodes, in percent of one processor.
    async fn load_of_nodes(&self) -> f64 {
        // The last sends are stored.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (before, begun) = (self.nats.processor_time(), Instant::now());
        tokio::time::sleep(WATCHED).await;
        (self.nats.processor_time() - before) as f64 / begun.elapsed().as_secs_f64()
    }

    /// Measures the return of the users of a killed server.
    pub(super) async fn returning(&self) {
        println!("\n{RETURNING} users of a server that is killed");
        let [mut killed, other] =
            [(); 2].map(|()| server(&self.nats, "returning", STREAMS).start());
        create_users(other.address(), RETURNING).await;
        let address = killed.address();
        let users = join_all((0..RETURNING).map(|n| receiving(address, n))).await;
        let began = Instant::now();
        killed.kill();
        drop(users);
        let address = other.address();
        let returned = join_all((0..RETURNING).map(|n| async move {
            (
                receives(&mut Link::connect(address, None).await, n).await,
                began.elapsed(),
            )
        }));
        let returned = returned.await;
        let refused = returned.iter().filter(|(is_ok, _)| !is_ok).count();
        let last = returned.iter().map(|(_, after)| *after).max().unwrap();
        println!(
            "{:>12}: {:.1} s until the last one, {refused} times unavailable",
            "back",
            last.as_secs_f64()
        );
    }

    /// Measures many users who fetch their queued messages.
    pub(super) async fn drain(&self) {
        println!("\n{READERS} users with {QUEUED} queued messages each");
        self.users(READERS).await;
        let [address, _] = self.addresses();
        for at_once in [AT_ONCE, READERS] {
            let rates = [
                drained(address, at_once).await,
                drained(address, at_once).await,
                drained(address, at_once).await,
            ];
            median(&format!("{at_once} at once"), rates.into());
        }
    }
}

/// Queues messages for many users, who then fetch them, `at_once` of them concurrently.
/// Returns their messages per second.
pub(super) async fn drained(address: SocketAddr, at_once: usize) -> f64 {
    // Removes messages left by other measurements.
    each(READERS, AT_ONCE, |user| async move {
        Link::connect(address, None).await.drain(&user).await
    })
    .await;
    fill(address, READERS, QUEUED).await;
    let began = Instant::now();
    let drained = AtomicU64::new(0);
    let count = &drained;
    each(READERS, at_once, |user| async move {
        let mut link = Link::connect(address, None).await;
        count.fetch_add(link.drain(&user).await, Ordering::Relaxed);
    })
    .await;
    let seconds = began.elapsed().as_secs_f64();
    let drained = drained.into_inner();
    assert_eq!(drained, READERS as u64 * u64::from(QUEUED));
    drained as f64 / seconds
}

/// Sends `queued` messages to each of `count` users.
pub(super) async fn fill(address: SocketAddr, count: usize, queued: u32) {
    let text = "x".repeat(TEXT_BYTES);
    let text = &*text;
    each(count, AT_ONCE, |user| async move {
        send_all(address, &user, text, queued).await;
    })
    .await;
}

/// Returns a connection that receives for a user.
async fn receiving(address: SocketAddr, n: usize) -> Link {
    let mut link = Link::connect(address, None).await;
    assert!(receives(&mut link, n).await);
    link
}

/// Begins to receive for a user. Returns false if that is unavailable.
async fn receives(link: &mut Link, n: usize) -> bool {
    let (user, password) = (name(&user(n)), None);
    link.write(1, &Request::Connect { user, password });
    link.flush().await;
    match link.reply().await {
        (1, Reply::Ok(_)) => true,
        (1, Reply::Error { .. }) => false,
        other => panic!("{other:?}"),
    }
}
