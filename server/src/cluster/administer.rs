//! Administration of a cluster: requests about the accounts of a shard, which its owner
//! decides; and questions to every server about itself and its connections.

use bytestring::ByteString;
use hark_protocol::UserName;

use super::flow::FlowId;
use super::message::{Answer, Event};
use super::owner::Owner;
use crate::store::{Account, InboxInfo, ServerDescription, StoreUsage};

/// A request of an administrator to the owner of a shard.
#[derive(Debug, Clone)]
pub(crate) enum Administer {
    /// Suspend or resume an account.
    SetSuspended {
        account: Account,
        is_suspended: bool,
    },
    /// Look up inboxes.
    Inspect(Vec<UserName>),
    /// Return the figures of the shard.
    Usage,
}

/// The answer of an owner, unless it is a flag.
#[derive(Debug, Clone)]
pub(crate) enum Administered {
    /// The inboxes that exist.
    Inspected(Vec<InboxInfo>),
    /// The figures of the shard.
    Usage(StoreUsage),
}

/// A question to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// Describe yourself.
    Describe,
    /// Close the connections of a user.
    KickUser(UserName),
    /// Close the connections from a network.
    KickNetwork(ByteString),
}

/// The answer of a server to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// Its description.
    Server(ServerDescription),
    /// The number of closed connections.
    Kicked(u64),
}

impl Owner {
    /// Decides a request of an administrator. Adds the events that are released before the
    /// answer.
    pub(super) fn administer(
        &mut self,
        request: Administer,
        events: &mut Vec<(FlowId, Event)>,
    ) -> Answer {
        match request {
            Administer::SetSuspended {
                account,
                is_suspended,
            } => {
                let changes = &mut self.changes;
                let exists = self.ledger.set_suspended(&account, is_suspended, changes);
                if is_suspended {
                    // The servers register it anew, and learn that it is suspended.
                    let servers = self.identities.servers(&account);
                    let flows = servers.filter_map(|server| self.flows.get(&server));
                    let event = || Event::AccountEnding(account.clone());
                    events.extend(flows.map(|flow| (flow.id(), event())));
                }
                Answer::Flag(exists)
            }
            Administer::Inspect(names) => {
                Answer::Administered(Administered::Inspected(self.ledger.inspect(&names)))
            }
            Administer::Usage => Answer::Administered(Administered::Usage(StoreUsage {
                accounts: self.ledger.account_count() as u64,
                last_number: self.ledger.counter(),
                live_bytes: self.blocks.live_bytes(),
                file_bytes: self.stream_bytes(),
                free_bytes: None,
                is_low_on_space: self.is_low_on_space,
            })),
        }
    }
}
