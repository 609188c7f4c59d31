//! [`Chain`]: the rule that decides which messages of a stream count. Owners and
//! candidates read a stream through it, so that all of them agree.
//!
//! An entry counts if it is the next one of the current claim and has exactly the
//! sequence that it names. A replicated stream checks the condition of an append when it
//! proposes the message, and not when it applies it; so other messages may precede it
//! unexpectedly. Such a message counts for no reader, whatever the stream answered.

use bytes::Bytes;

use super::ServerId;
use super::bugs::{Bug, is_planted};
use super::entry::{Claim, Content, Entry, Index, NoEntry, OLDEST_FORMAT, checksum};
use crate::log::Frame;

/// The entries of a stream up to a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    /// The sequence of the last message read, whether it counts or not.
    last: u64,
    /// The current claim; `None` before the first claim and after a release.
    claim: Option<Claim>,
    /// The number of the last counting entry of this claim.
    commit: u64,
    /// The checksum of the last counting entry.
    checksum: u64,
    /// The newest format of an entry so far.
    format: u8,
    /// The newest format that this server reads.
    newest: u8,
    /// The servers that the last counting entry names.
    servers: Vec<ServerId>,
}

/// The meaning of a message.
#[derive(Debug)]
pub(super) enum Taken {
    /// A claim, current from here on.
    Claimed,
    /// The next commit of the current claim.
    Committed(Frame),
    /// The owner has released the shard.
    Released,
    /// A part of a snapshot, with places of blocks.
    Indexed(Index),
    /// The message does not count.
    Skipped,
    /// A later version wrote it: whether it counts is unknown.
    Unknown,
}

impl Chain {
    /// Returns a chain that begins with the message at `first`: the first message of the
    /// stream, or the first part of a snapshot. `newest` is the newest format that this server
    /// reads.
    pub(super) const fn starting_at(first: u64, newest: u8) -> Self {
        let (last, format) = (first.saturating_sub(1), OLDEST_FORMAT);
        Self {
            last,
            claim: None,
            commit: 0,
            checksum: 0,
            format,
            newest,
            servers: Vec::new(),
        }
    }

    /// Returns the newest format of an entry so far.
    pub(super) const fn format(&self) -> u8 {
        self.format
    }

    /// Returns the servers that may act as accounts of the shard.
    pub(super) fn servers(&self) -> &[ServerId] {
        &self.servers
    }

    /// Returns the sequence of the last message that was read.
    pub(super) const fn last(&self) -> u64 {
        self.last
    }

    /// Returns the current claim.
    pub(super) const fn claim(&self) -> Option<Claim> {
        self.claim
    }

    /// Handles the next message of the stream.
    pub(super) fn take(&mut self, bytes: &Bytes) -> Taken {
        self.last += 1;
        let (entry, checksum) = match Entry::decode(bytes, self.newest) {
            Ok(decoded) => decoded,
            Err(NoEntry::Unknown) => return Taken::Unknown,
            Err(NoEntry::Corrupt) => {
                tracing::warn!(
                    sequence = self.last,
                    "corrupt message in the stream of a shard"
                );
                return Taken::Skipped;
            }
        };
        let Entry {
            format,
            claim,
            commit,
            sequence,
            previous,
            servers,
            content,
            ..
        } = entry;
        self.format = self.format.max(format);
        let is_in_place = sequence == self.last;
        match content {
            Content::Claim { .. } if is_in_place || sequence == 0 => {
                // An unconditional append may be stored twice.
                if self.claim.is_some_and(|current| current.id == claim.id) {
                    return Taken::Skipped;
                }
                self.claim = Some(Claim {
                    sequence: self.last,
                    id: claim.id,
                });
                (self.commit, self.checksum) = (0, checksum);
                Taken::Claimed
            }
            Content::Frame(frame)
                if self.is_beginning() && frame.checkpoint.is_some_and(|part| part.is_first) =>
            {
                self.claim = Some(claim);
                self.count(commit, checksum, servers);
                Taken::Committed(frame)
            }
            Content::Frame(frame)
                if is_planted(Bug::SnapshotOutsideFence) && frame.checkpoint.is_some() =>
            {
                Taken::Committed(frame)
            }
            Content::Frame(_) | Content::Release | Content::Index(_)
                if !is_in_place || !self.is_next(claim, commit, previous) =>
            {
                tracing::warn!(sequence = self.last, "message of a former owner skipped");
                Taken::Skipped
            }
            Content::Frame(frame) => {
                self.count(commit, checksum, servers);
                Taken::Committed(frame)
            }
            Content::Release => {
                self.count(commit, checksum, servers);
                self.claim = None;
                Taken::Released
            }
            Content::Index(index) => {
                self.count(commit, checksum, servers);
                Taken::Indexed(index)
            }
            Content::Claim { .. } => Taken::Skipped,
        }
    }

    /// Returns the next entry of the current claim; `None` without a claim. `snapshot` is the
    /// first sequence of the newest complete snapshot, and `servers` may act as accounts.
    pub(super) fn next(
        &self,
        content: Content,
        snapshot: u64,
        servers: Vec<ServerId>,
    ) -> Option<Entry> {
        let (claim, sequence, format) = (self.claim?, self.last + 1, self.format);
        let (commit, previous) = (self.commit + 1, self.checksum);
        Some(Entry {
            format,
            claim,
            commit,
            sequence,
            previous,
            snapshot,
            servers,
            content,
        })
    }

    /// Advances past the entry returned by [`Self::next`], which is now stored.
    pub(super) fn advance(&mut self, encoded: &Bytes, servers: Vec<ServerId>) {
        self.last += 1;
        self.count(self.commit + 1, checksum(encoded), servers);
        self.format = encoded
            .first()
            .map_or(self.format, |format| self.format.max(*format));
    }

    fn count(&mut self, commit: u64, checksum: u64, servers: Vec<ServerId>) {
        (self.commit, self.checksum, self.servers) = (commit, checksum, servers);
    }

    /// Returns whether the message is the first one of a purged stream.
    const fn is_beginning(&self) -> bool {
        self.last > 1 && self.claim.is_none() && self.commit == 0 && self.checksum == 0
    }

    fn is_next(&self, claim: Claim, commit: u64, previous: u64) -> bool {
        self.claim == Some(claim) && commit == self.commit + 1 && previous == self.checksum
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::super::entry::ClaimId;
    use super::*;

    const SERVERS: [ServerId; 2] = [ServerId(3), ServerId(4)];

    fn claim(server: u64, sequence: u64) -> Bytes {
        let claim = Claim {
            sequence: 0,
            id: ClaimId {
                server: ServerId(server),
                number: 1,
            },
        };
        let content = Content::Claim { format: 1 };
        Entry {
            format: 1,
            claim,
            commit: 0,
            sequence,
            previous: 0,
            snapshot: 0,
            servers: Vec::new(),
            content,
        }
        .encode()
    }

    fn frame(chain: &Chain) -> Bytes {
        chain
            .next(Content::Frame(Frame::default()), 0, SERVERS.into())
            .unwrap()
            .encode()
    }

    #[track_caller]
    fn check(chain: &mut Chain, bytes: &Bytes, counts: bool) {
        let taken = chain.take(bytes);
        assert_eq!(!matches!(taken, Taken::Skipped), counts, "{taken:?}");
    }

    #[test]
    fn frames_count_in_their_place_alone() {
        let mut chain = Chain::starting_at(1, 1);
        check(&mut chain, &claim(1, 1), true);
        let first = frame(&chain);
        check(&mut chain, &first, true);
        check(&mut chain, &first, false);
        let late = frame(&Chain {
            last: chain.last + 1,
            ..chain.clone()
        });
        check(&mut chain, &late, false);
        check(&mut chain, &Bytes::from_static(b"junk"), false);
        let next = frame(&chain);
        check(&mut chain, &next, true);
    }

    #[test]
    fn later_claim_ends_the_earlier_one() {
        let mut chain = Chain::starting_at(1, 1);
        check(&mut chain, &claim(1, 1), true);
        let deposed = chain.clone();
        check(&mut chain, &claim(2, 2), true);
        check(&mut chain, &frame(&deposed), false);
        let late = frame(&Chain {
            last: chain.last,
            ..deposed
        });
        check(&mut chain, &late, false);
        check(&mut chain, &claim(1, 3), false);
        check(&mut chain, &claim(1, 0), true);
        check(&mut chain, &claim(1, 0), false);
    }

    #[test]
    fn entry_of_a_later_version_is_not_skipped() {
        let mut chain = Chain::starting_at(1, 1);
        let mut later = vec![2; 70];
        later.extend_from_slice(&xxh3_64(&later).to_le_bytes());
        assert!(matches!(chain.take(&later.into()), Taken::Unknown));
    }

    #[test]
    fn own_entries_advance_as_readers_do() {
        let mut reader = Chain::starting_at(1, 1);
        check(&mut reader, &claim(1, 1), true);
        let mut owner = reader.clone();
        for _ in 0..3 {
            let bytes = frame(&owner);
            owner.advance(&bytes, SERVERS.into());
            check(&mut reader, &bytes, true);
            assert_eq!(reader, owner);
        }
        let release = owner
            .next(Content::Release, 0, Vec::new())
            .unwrap()
            .encode();
        check(&mut reader, &release, true);
        assert_eq!((reader.claim(), reader.servers()), (None, &[][..]));
        check(&mut reader, &frame(&owner), false);
    }
}
