//! Imports, as requests to the owners of the shards. They are decided in the order of the
//! calls. If one is unavailable, the later ones that are undecided are unavailable as well.

use hark_protocol::{Sequence, UserName};

use super::ClusterStore;
use super::operation::{Completion, Input};
use crate::cluster::ShardId;
use crate::cluster::assignment;
use crate::cluster::message::Import;
use crate::ledger::Imported;
use crate::store::{Completer, Created, Message, PasswordHash, Pending};

impl ClusterStore {
    /// Returns the maximum bytes of a text that the nodes take.
    pub(crate) const fn text_bytes_max(&self) -> usize {
        self.text_bytes_max
    }

    /// Creates an account whose messages up to `cursor` were acknowledged.
    pub(crate) fn import_account(
        &self,
        name: &UserName,
        password: Option<PasswordHash>,
        cursor: Sequence,
    ) -> Pending<Created> {
        let import = Import::Account {
            name: name.clone(),
            password,
            cursor,
        };
        self.import(self.shard_of(name), import, Completion::Created)
    }

    /// Stores a message under its own number. Its text has at most
    /// [`Self::text_bytes_max`] bytes.
    pub(crate) fn import_message(&self, to: &UserName, message: Message) -> Pending<Imported> {
        let import = Import::Message {
            to: to.clone(),
            message: Box::new(message),
        };
        self.import(self.shard_of(to), import, Completion::Imported)
    }

    /// Returns the number of shards.
    pub(crate) const fn shards(&self) -> u32 {
        self.shards
    }

    /// Assigns no number up to this one in a shard.
    pub(crate) fn skip_numbers(&self, shard: ShardId, number: Sequence) -> Pending<bool> {
        self.import(shard, Import::SkipNumbers(number), Completion::Flag)
    }

    fn shard_of(&self, name: &UserName) -> ShardId {
        assignment::shard_of(name, self.shards)
    }

    fn import<T>(
        &self,
        shard: ShardId,
        import: Import,
        completion: impl FnOnce(Completer<T>) -> Completion,
    ) -> Pending<T> {
        let (completer, pending) = Pending::new();
        let input = Input::Import(shard, import, completion(completer));
        // If the driver has ended, dropping the completer completes it.
        drop(self.operations.send(input));
        pending
    }
}
