//! The receiver of a name at this server: takeover, release and end.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Lane, Written, latest};
use crate::store::cluster::engine::{ATTEMPT, Lost, NotStored};
use crate::store::cluster::reception::{Claim, Reception};
use crate::store::cluster::record::{State, Told};
use crate::store::{Account, End, Subscription, Unavailable};

impl Lane {
    pub(super) async fn receive(
        &mut self,
        account: &Account,
        takes_over: bool,
        deadline: Instant,
    ) -> Result<Option<Subscription>, Unavailable> {
        loop {
            if !self.shared.directory.is_alive(account) {
                return Ok(None);
            }
            match self.try_receive(account, takes_over).await {
                Ok(receiver) => return Ok(receiver),
                Err(NotStored::Moved) => {}
                Err(_) => {
                    self.tail = None;
                    self.pause(deadline).await?;
                }
            }
        }
    }

    async fn try_receive(
        &mut self,
        account: &Account,
        takes_over: bool,
    ) -> Result<Option<Subscription>, NotStored> {
        let is_here = self.reception.as_ref().is_some_and(|reception| !reception.is_ended());
        if is_here && !takes_over {
            return Ok(None);
        }
        if let Some(reception) = self.reception.take() {
            self.former = Some(reception.stop().await);
        }
        if !is_here && self.is_elsewhere(account, takes_over).await? {
            return Ok(None);
        }
        // A former receiver at another server has persisted its acknowledgements. If the
        // cached record is stale, the conditional write of the claim fails.
        let written = self.written(account).await?;
        let cursor = latest(self.shared.cursors.of(account), written.state.cursor);
        let claim = State { cursor, reception: rand::random() };
        self.write_state(account, written, claim).await?;
        let claimed = self.written(account).await?.revision;
        let subscription = self.shared.subscribe(account).await.map_err(|Lost| NotStored::Lost)?;
        // A read from here on comes after the subscription, which misses no later event.
        self.tail = None;
        let shared = Arc::clone(&self.shared);
        let state = async { shared.state(account).await.map_err(|Lost| NotStored::Lost) };
        let ((revision, state), tail) = tokio::try_join!(state, self.tail(account))?;
        self.written = Some(Written { incarnation: account.incarnation, revision, state });
        let is_still_ours = state.reception == claim.reception;
        let queued = tail.position.messages.saturating_sub(cursor.messages);
        let (feed, receiver) = Subscription::new(account.clone(), queued, cursor);
        let guard = CancellationToken::new();
        let receiver = receiver.releasing(guard.clone().drop_guard());
        if !is_still_ours {
            feed.end(End::TakenOver);
        }
        let claim = Claim { account: account.clone(), reception: claim.reception, revision: claimed };
        self.reception = Some(Reception::begin(&self.shared, claim, subscription, feed, guard, tail.last));
        Ok(Some(receiver))
    }

    /// Returns whether another server keeps its receiver. If `takes_over`, asks that
    /// server to yield.
    async fn is_elsewhere(&self, account: &Account, takes_over: bool) -> Result<bool, NotStored> {
        let told = if takes_over { Told::Yield } else { Told::Probe };
        let subject = self.shared.names.tell(account, told);
        match self.shared.engine.ask(&subject, Bytes::new()).await {
            Ok(None) => Ok(false),
            Ok(Some(_)) => Ok(!takes_over),
            // An unreachable receiver sees the claim when it reconnects.
            Err(Lost) if takes_over => Ok(false),
            Err(Lost) => Err(NotStored::Lost),
        }
    }

    pub(super) async fn released(&mut self, account: &Account) {
        if self.receives_for(account) && self.reception.as_ref().is_some_and(Reception::is_ended) {
            self.let_go(None).await;
        }
        self.save(account).await;
    }

    pub(super) async fn yield_reception(&mut self, account: &Account, reply: String) {
        if self.receives_for(account) {
            if let Some(reception) = &self.reception {
                reception.end(End::TakenOver);
            }
            self.save_until(account, Instant::now() + ATTEMPT / 2).await;
            self.let_go(None).await;
        }
        self.shared.publish(reply).await;
    }

    pub(super) async fn ended(&mut self, account: &Account) {
        if self.receives_for(account) {
            self.let_go(Some(End::Deleted)).await;
        }
        self.tail = self.tail.filter(|tail| tail.incarnation != account.incarnation);
        self.written = self.written.filter(|written| written.incarnation != account.incarnation);
        self.save.take_if(|(_, of)| of == account);
        self.shared.cursors.forget(account);
        self.shared.sweeper.ended(account);
    }

    fn receives_for(&self, account: &Account) -> bool {
        self.reception.as_ref().is_some_and(|reception| reception.account() == account)
    }

    /// Ends the receiver here, if any, and waits until its task has unsubscribed.
    pub(super) async fn let_go(&mut self, end: Option<End>) {
        if let Some(reception) = self.reception.take() {
            if let Some(end) = end {
                reception.end(end);
            }
            drop(reception.stop().await);
        }
    }
}
