//! Assignment: the shard of a name, and the preference order of servers as owners of a
//! shard. Both depend only on hashes, so all servers agree.

use hark_protocol::UserName;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{ServerId, ShardId};

/// Returns the shard of a name.
pub(super) fn shard_of(name: &UserName, shards: u32) -> ShardId {
    ((u128::from(xxh3_64(name.as_str().as_bytes())) * u128::from(shards)) >> 64) as ShardId
}

/// Returns the number of servers preferred over `server` as the owner of a shard, by
/// rendezvous hashing: a server that joins or leaves moves only its own shards.
pub(super) fn rank(
    shard: ShardId,
    server: ServerId,
    servers: impl Iterator<Item = ServerId>,
) -> u32 {
    let own = weight(shard, server);
    servers.filter(|other| weight(shard, *other) > own).count() as u32
}

/// Returns the most preferred of these servers as the owner of a shard.
pub(super) fn preferred(
    shard: ShardId,
    servers: impl Iterator<Item = ServerId>,
) -> Option<ServerId> {
    servers.max_by_key(|server| weight(shard, *server))
}

fn weight(shard: ShardId, server: ServerId) -> (u64, ServerId) {
    let hash = xxh3_64_with_seed(&server.0.to_le_bytes(), shard.into());
    (hash, server)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: u32 = 12;

    fn owners(servers: &[u64]) -> Vec<u64> {
        let owner = |shard| {
            let all = || servers.iter().copied().map(ServerId);
            all()
                .find(|server| rank(shard, *server, all()) == 0)
                .inspect(|server| assert_eq!(preferred(shard, all()), Some(*server)))
                .unwrap()
                .0
        };
        (0..SHARDS).map(owner).collect()
    }

    #[test]
    fn server_that_leaves_moves_only_its_own_shards() {
        let (before, after) = (owners(&[1, 2, 3]), owners(&[1, 3]));
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after);
        assert!(moved.clone().count() > 0 && moved.clone().all(|(before, _)| *before == 2));
        assert!((1..=3).all(|server| before.contains(&server)), "{before:?}");
    }

    #[test]
    fn ranks_are_a_permutation() {
        let servers = [5, 9, 4].map(ServerId);
        let mut ranks: Vec<_> = servers
            .map(|server| rank(3, server, servers.into_iter()))
            .into();
        ranks.sort_unstable();
        assert_eq!(ranks, [0, 1, 2]);
    }

    #[test]
    fn names_spread_over_all_shards() {
        let mut counts = [0; SHARDS as usize];
        for n in 0..12_000 {
            counts[shard_of(&format!("user{n}").parse().unwrap(), SHARDS) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }
}
