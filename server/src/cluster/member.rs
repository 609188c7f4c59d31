//! [`Member`]: one server of the cluster, with a seat in and a link to each shard.

use hark_protocol::UserName;

use super::assignment;
use super::link::Link;
use super::message::{Message, Request};
use super::seat::Seat;
use super::{Action, Config, ConnectionId, LogReply, Now, ServerId, ShardId};
use crate::store::Account;

/// One server of the cluster.
#[derive(Debug)]
pub(crate) struct Member {
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    seat: Seat,
    link: Link,
}

impl Member {
    /// Returns a server that owns no shard. `servers` are all servers of the cluster.
    pub(crate) fn new(server: ServerId, servers: &[ServerId], shards: u32, config: Config) -> Self {
        let shard = |shard| {
            let rank = assignment::rank(shard, server, servers.iter().copied());
            Shard { seat: Seat::new(shard, server, config, rank), link: Link::new(shard, server, config) }
        };
        Self { shards: (0..shards).map(shard).collect() }
    }

    /// Returns the shard of a name.
    pub(crate) fn shard_of(&self, name: &UserName) -> ShardId {
        assignment::shard_of(name, self.shards.len() as u32)
    }

    /// Handles a message from any server, including this one.
    pub(crate) fn handle_message(&mut self, message: Message, now: Now, out: &mut Vec<Action>) {
        let (Message::Heartbeat(shard, _)
        | Message::Released(shard, _)
        | Message::Up(shard, ..)
        | Message::Down(shard, ..)) = message;
        let Some(Shard { seat, link }) = self.shards.get_mut(shard as usize) else { return };
        let before = out.len();
        match message {
            Message::Heartbeat(_, claim) => {
                seat.handle_heartbeat(claim, now);
                link.handle_heartbeat(claim, now, out);
            }
            Message::Released(_, claim) => seat.handle_released(claim),
            Message::Up(_, id, up) => seat.handle_up(id, up, now, out),
            Message::Down(_, id, down) => link.handle_down(id, down, now, out),
        }
        self.obey(before, out);
    }

    /// Handles an answer of the stream of a shard.
    pub(crate) fn handle_log(&mut self, shard: ShardId, reply: LogReply, now: Now, out: &mut Vec<Action>) {
        if let Some(shard) = self.shards.get_mut(shard as usize) {
            shard.seat.handle_log(reply, now, out);
        }
    }

    /// Submits a request of a connection to a shard, to be sent by [`Self::flush`]. The
    /// answer is an [`Action::Answer`], unless the request has none.
    pub(crate) fn submit(
        &mut self,
        shard: ShardId,
        (connection, request): (ConnectionId, u64),
        content: Request,
        now: Now,
    ) {
        if let Some(shard) = self.shards.get_mut(shard as usize) {
            shard.link.submit(connection, request, content, now);
        }
    }

    /// Sends the submitted requests.
    pub(crate) fn flush(&mut self, now: Now, out: &mut Vec<Action>) {
        self.shards.iter_mut().for_each(|shard| shard.link.flush(now, out));
    }

    /// Ends a reception of a connection, at the next [`Self::flush`].
    pub(crate) fn unsubscribe(&mut self, account: &Account, connection: ConnectionId, now: Now) {
        let shard = self.shard_of(&account.name) as usize;
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.link.unsubscribe(account.incarnation, connection, now);
        }
    }

    /// Ends the registration of an account, at the next [`Self::flush`].
    pub(crate) fn unregister(&mut self, account: &Account, now: Now) {
        let shard = self.shard_of(&account.name) as usize;
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.link.unregister(account.incarnation, now);
        }
    }

    /// Returns whether there is a flow to the owner of each shard.
    pub(crate) fn is_in_touch(&self, now: Now) -> bool {
        self.shards.iter().all(|shard| shard.link.is_open(now))
    }

    /// Returns whether this server owns no shard.
    pub(crate) fn owns_nothing(&self) -> bool {
        self.shards.iter().all(|shard| shard.seat.owner().is_none())
    }

    /// Handles the end of a connection.
    pub(crate) fn disconnect(&mut self, connection: ConnectionId, now: Now, out: &mut Vec<Action>) {
        self.shards.iter_mut().for_each(|shard| shard.link.disconnect(connection, now, out));
    }

    /// Returns whether connections of this server may currently act as an account: it is
    /// registered by [`Request::Register`], and the flow is alive.
    pub(crate) fn is_registered(&self, account: &Account, now: Now) -> bool {
        let shard = self.shards.get(self.shard_of(&account.name) as usize);
        shard.is_some_and(|shard| shard.link.is_registered(account, now))
    }

    /// Performs the actions that are due at this time.
    pub(crate) fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        let before = out.len();
        for Shard { seat, link } in &mut self.shards {
            seat.tick(now, out);
            link.tick(now, out);
        }
        self.obey(before, out);
    }

    /// Releases all shards that it owns.
    pub(crate) fn leave(&mut self, now: Now, out: &mut Vec<Action>) {
        self.shards.iter_mut().for_each(|shard| shard.seat.leave(now, out));
    }

    /// Returns the seats in the order of the shards.
    #[cfg(test)]
    pub(super) fn seats(&self) -> impl Iterator<Item = &Seat> {
        self.shards.iter().map(|shard| &shard.seat)
    }

    /// Drops the commands of closing connections at every link, before the caller closes
    /// them.
    fn obey(&mut self, before: usize, out: &[Action]) {
        for action in out.get(before..).unwrap_or_default() {
            match action {
                Action::Close(connection) => {
                    self.shards.iter_mut().for_each(|shard| shard.link.drop_commands(*connection));
                }
                Action::CloseAll => self.shards.iter_mut().for_each(|shard| shard.link.drop_all_commands()),
                _ => {}
            }
        }
    }
}
