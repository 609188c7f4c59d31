//! [`LocalReceptions`]: the receptions of a server's connections in one shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::message::{Generation, Request, Subscribed};
use super::super::{Action, ConnectionId};
use super::commands::Origin;
use crate::store::{
    Account, End, Event as Published, Message as Text, Position, Publisher, Subscription,
};

/// The receptions of a server's connections, by inbox.
#[derive(Debug, Default)]
pub(super) struct LocalReceptions(BTreeMap<u64, Reception>);

#[derive(Debug)]
struct Reception {
    account: Account,
    generation: Generation,
    connection: ConnectionId,
    publisher: Publisher,
    delivered: Position,
    acknowledged: Position,
}

impl LocalReceptions {
    /// Begins a reception. Returns its subscription, and the publisher of the former one.
    pub(super) fn begin(
        &mut self,
        connection: ConnectionId,
        account: Account,
        subscribed: Subscribed,
    ) -> (Subscription, Option<Publisher>) {
        let Subscribed {
            generation,
            queued,
            cursor,
        } = subscribed;
        let (publisher, subscription) = Subscription::new(account.clone(), queued, cursor);
        let inbox = account.incarnation;
        let reception = Reception {
            account,
            generation,
            connection,
            publisher,
            delivered: cursor,
            acknowledged: cursor,
        };
        let former = self.0.insert(inbox, reception);
        (subscription, former.map(|former| former.publisher))
    }

    /// Ends the reception of an inbox if it belongs to this connection. Returns the request
    /// that ends it at the owner.
    pub(super) fn unsubscribe(&mut self, inbox: u64, connection: ConnectionId) -> Option<Request> {
        self.0
            .get(&inbox)
            .filter(|reception| reception.connection == connection)?;
        self.0.remove(&inbox).map(Reception::unsubscribe)
    }

    /// Ends the receptions of a connection that has gone, as [`Self::unsubscribe`] does.
    #[cfg(any(test, feature = "maelstrom"))]
    pub(super) fn disconnect(&mut self, connection: ConnectionId) -> Vec<Request> {
        let gone = self
            .0
            .extract_if(.., |_, reception| reception.connection == connection);
        gone.map(|(_, reception)| reception.unsubscribe()).collect()
    }

    /// Records an acknowledgement.
    pub(super) fn acknowledge(&mut self, inbox: u64, position: Position) {
        if let Some(reception) = self.0.get_mut(&inbox)
            && reception.acknowledged.sequence < position.sequence
        {
            reception.acknowledged = position;
        }
    }

    /// Publishes stored messages.
    pub(super) fn deliver(&mut self, inbox: u64, messages: Vec<Arc<Text>>, out: &mut Vec<Action>) {
        if let Some(reception) = self.0.get_mut(&inbox) {
            if let Some(last) = messages.last() {
                reception.delivered = last.position;
            }
            let publisher = reception.publisher.clone();
            out.push(Action::Publish(publisher, Published::Appended(messages)));
        }
    }

    /// Reports that stored messages were not delivered.
    pub(super) fn lag(&self, inbox: u64, out: &mut Vec<Action>) {
        if let Some(reception) = self.0.get(&inbox) {
            let publisher = reception.publisher.clone();
            out.push(Action::Publish(publisher, Published::Lagged));
        }
    }

    /// Ends the reception of an inbox, if it has this generation.
    pub(super) fn end_of(
        &mut self,
        inbox: u64,
        generation: Generation,
        end: End,
        out: &mut Vec<Action>,
    ) {
        let reception = self.0.get(&inbox);
        if reception.is_some_and(|reception| reception.generation == generation) {
            self.end(inbox, end, out);
        }
    }

    /// Ends the reception of an inbox.
    pub(super) fn end(&mut self, inbox: u64, end: End, out: &mut Vec<Action>) {
        if let Some(reception) = self.0.remove(&inbox) {
            out.push(Action::Publish(reception.publisher, Published::Ended(end)));
        }
    }

    /// Returns the requests that continue all receptions in a new flow.
    pub(super) fn resume(&self) -> impl Iterator<Item = (Origin, Request)> {
        self.0.iter().map(|(inbox, reception)| {
            let request = Request::Resubscribe {
                account: reception.account.clone(),
                generation: reception.generation,
                delivered: reception.delivered,
                acknowledged: reception.acknowledged,
            };
            (Origin::Reception(*inbox), request)
        })
    }
}

impl Reception {
    fn unsubscribe(self) -> Request {
        Request::Unsubscribe(self.account, self.generation)
    }
}
