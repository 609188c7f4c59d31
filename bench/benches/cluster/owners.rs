//! The pause of a shard whose owner is killed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use hark_protocol::Reply;
use hark_tests::{Harkd, Nats, send};

use super::load::Link;
use super::users::fill;
use super::{SPREAD, STREAMS, create_users, server, user};

/// Kills of an owner, and of an owner together with a node.
const KILLS: usize = 3;
const KILLS_WITH_NODE: usize = 2;

/// Users who are asked for the state of their shards: at least one in each shard.
const ASKED: usize = 96;

/// A pause that an owner that lives can cause, too.
const NO_PAUSE: Duration = Duration::from_millis(500);

/// A million messages in one shard.
const MANY_READERS: usize = 1_000;
const MANY_QUEUED: u32 = 1_000;

/// Returns the shards that a server owns, by its log.
pub(super) fn owned_shards(server: &Harkd) -> BTreeSet<u32> {
    let mut owned = BTreeSet::new();
    for line in server.log().lines() {
        let shard = || line.split("shard=").nth(1)?.split(' ').next()?.parse().ok();
        match shard() {
            Some(shard) if line.contains("shard claimed") => owned.insert(shard),
            Some(shard) if line.contains("handing the shard over") || line.contains("deposed") => {
                owned.remove(&shard)
            }
            _ => false,
        };
    }
    owned
}

/// Measures the pause of the shards of a killed server, also if a node is killed with it,
/// which leads the stream of one of them.
pub(super) async fn pauses(nats: &mut Nats) {
    let mut servers = [(); 2].map(|()| server(nats, "pauses", STREAMS).start());
    create_users(servers[0].address(), ASKED).await;
    for (count, with_node) in [(KILLS, false), (KILLS_WITH_NODE, true)] {
        let mut pauses = Vec::new();
        for round in 0..count {
            tokio::time::sleep(SPREAD).await;
            let [killed, other] = [round % 2, (round + 1) % 2];
            let address = servers[other].address();
            let owned = owned_shards(&servers[killed]);
            let node = owned.first().filter(|_| with_node);
            let node = node.map(|shard| nats.leader_of(&format!("pauses-shard-{shard}")));
            let began = Instant::now();
            servers[killed].kill();
            node.iter().for_each(|node| nats.kill(*node));
            let all = join_all((0..ASKED).map(|n| answered(address, n, began))).await;
            pauses.extend(all.into_iter().filter(|pause| *pause > NO_PAUSE));
            let [one, two] = servers;
            servers = match killed {
                0 => [one.restart(), two],
                _ => [one, two.restart()],
            };
            if let Some(node) = node {
                nats.restart(node);
                nats.wait_until_current();
            }
        }
        pauses.sort_unstable();
        let what = if with_node { "with a node" } else { "owner" };
        let Some(longest) = pauses.last() else {
            println!("\n{what} killed: no pause");
            continue;
        };
        println!(
            "\n{what} killed {count} times: the pause of its shards has a median of {:.1} s, at most {:.1} s",
            pauses[pauses.len() / 2].as_secs_f64(),
            longest.as_secs_f64()
        );
    }
}

/// Measures the takeover of a shard with a million queued messages.
pub(super) async fn takeover_of_a_million(nats: &Nats) {
    let mut first = server(nats, "million", 1).start();
    create_users(first.address(), MANY_READERS).await;
    fill(first.address(), MANY_READERS, MANY_QUEUED).await;
    let mut second = server(nats, "million", 1).start();
    let began = Instant::now();
    let other = match owned_shards(&second).is_empty() {
        true => {
            first.kill();
            second
        }
        false => {
            second.kill();
            first
        }
    };
    let pause = answered(other.address(), 0, began).await;
    println!(
        "\ntakeover of a shard with {} queued messages: {:.1} s",
        MANY_READERS as u64 * u64::from(MANY_QUEUED),
        pause.as_secs_f64()
    );
    let log = other.log();
    let mut claims = log.lines().filter(|line| line.contains("shard claimed"));
    println!("{}", claims.next_back().unwrap_or_default());
}

/// Sends to a user until that is stored. Returns the time since `began`.
async fn answered(address: SocketAddr, n: usize, began: Instant) -> Duration {
    loop {
        let mut link = Link::connect(address, None).await;
        link.write(1, &send(&user(n), "hello"));
        link.flush().await;
        match link.reply().await {
            (1, Reply::Ok(_)) => return began.elapsed(),
            (1, Reply::Error { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
