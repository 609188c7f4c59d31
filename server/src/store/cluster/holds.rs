//! A session is open at one server at a time. Whoever opens it asks the one
//! where it was to let go: there nothing more of it is begun, and what is under
//! way is decided. So a server that a client has left cannot store what another
//! has refused meanwhile.

use std::net::IpAddr;
use std::sync::Arc;

use async_nats::Subscriber;
use futures::StreamExt;
use hark_protocol::SessionToken;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::store::{Decide, Pending, Unavailable};

/// Opens a session here, once it is open nowhere else. A server that does not
/// answer is cut off, or has ended.
pub(super) async fn open(
    shared: Arc<Shared>,
    token: SessionToken,
    from: Option<IpAddr>,
    decide: Decide<bool>,
) {
    if !shared.sends.is_held(&token) {
        let subject = shared.names.session(&token);
        if shared.engine.ask(&subject, bytes::Bytes::new()).await.is_err() {
            tracing::debug!("whoever had the session before does not answer");
        }
        let Ok(subscription) = shared.engine.client().subscribe(subject).await else {
            return decide.decide(Err(Unavailable));
        };
        let released = CancellationToken::new();
        if shared.sends.hold(&token, from, released.clone()) {
            let task = hold(Arc::clone(&shared), token.clone(), subscription, released);
            shared.tasks.spawn(task);
        }
    }
    shared.sends.open(&token, from, decide);
}

/// Lets go of the session when it is asked to, or when nothing is left of it.
async fn hold(
    shared: Arc<Shared>,
    token: SessionToken,
    mut subscription: Subscriber,
    released: CancellationToken,
) {
    let asked = tokio::select! {
        () = shared.stop.cancelled() => None,
        () = shared.closing.cancelled() => None,
        () = released.cancelled() => None,
        asked = subscription.next() => asked,
    };
    if let Some(reply) = asked.and_then(|asked| asked.reply) {
        let (decide, pending) = Pending::new();
        shared.sends.let_go(&token, decide);
        // Where it fails the store has ended, and whoever has asked goes on in time.
        if pending.await.is_ok() {
            shared.publish(reply.into_string()).await;
        }
    }
    if let Err(error) = subscription.unsubscribe().await {
        tracing::debug!(%error, "a subscription was over already");
    }
}
