//! [`Member`]: one server of the cluster, with a seat in and a link to each shard.

use std::time::Duration;

use hark_protocol::{SessionToken, UserName};

use super::assignment;
use super::handover::Handovers;
use super::link::Link;
use super::listing::Listings;
use super::message::{Answer, Message, Reply, Request};
use super::presence::Presence;
use super::seat::Seat;
use super::send_order::{SendOrder, SendTo};
use super::sessions::Sessions;
use super::{Action, Config, ConnectionId, LogReply, Now, ServerId, ShardId, Storage, timing};
use crate::store::Account;

/// One server of the cluster.
#[derive(Debug)]
pub(crate) struct Member {
    server: ServerId,
    shards: Vec<Shard>,
    send_order: SendOrder,
    listings: Listings,
    sessions: Sessions,
    presence: Presence,
    handovers: Handovers,
    newest_format: u8,
    /// It serves no clients, and owns nothing while there is another server.
    is_tool: bool,
    /// The time for which the machine has been suspended since it started.
    suspended: Option<Duration>,
}

#[derive(Debug)]
struct Shard {
    seat: Seat,
    link: Link,
}

impl Member {
    /// Returns a server that owns no shard. `servers` are those known so far.
    pub(crate) fn new(server: ServerId, servers: &[ServerId], shards: u32, config: Config) -> Self {
        let shard = |shard| {
            let rank = assignment::rank(shard, server, servers.iter().copied());
            Shard {
                seat: Seat::new(shard, server, config, rank),
                link: Link::new(shard, server, config),
            }
        };
        Self {
            server,
            shards: (0..shards).map(shard).collect(),
            send_order: SendOrder::default(),
            listings: Listings::default(),
            sessions: Sessions::default(),
            presence: Presence::new(config.newest_format),
            handovers: Handovers::default(),
            newest_format: config.newest_format,
            is_tool: false,
            suspended: None,
        }
    }

    /// Makes it a tool, which serves no clients: it does not announce itself, so that no
    /// shard is handed over to it, and claims none while it hears a server.
    pub(crate) fn into_tool(mut self) -> Self {
        self.presence.leave();
        Self {
            is_tool: true,
            ..self
        }
    }

    /// Returns the shard of a name.
    pub(crate) fn shard_of(&self, name: &UserName) -> ShardId {
        assignment::shard_of(name, self.shards.len() as u32)
    }

    /// Handles a message from any server, including this one.
    pub(crate) fn handle_message(&mut self, message: Message, now: Now, out: &mut Vec<Action>) {
        let (Message::Heartbeat(shard, _)
        | Message::Released(shard, ..)
        | Message::Up(shard, ..)
        | Message::Down(shard, ..)) = message
        else {
            return self.handle_announcement(message, now, out);
        };
        let Some(Shard { seat, link }) = self.shards.get_mut(shard as usize) else {
            return;
        };
        let before = out.len();
        match message {
            Message::Heartbeat(_, claim) => {
                seat.handle_heartbeat(claim, now);
                link.handle_heartbeat(claim, now, out);
            }
            Message::Released(_, claim, to) => {
                seat.handle_released(claim, to, now);
                link.handle_released(claim);
            }
            Message::Up(_, id, up) => seat.handle_up(id, up, now, out),
            Message::Down(_, id, down) => link.handle_down(id, down, now, out),
            Message::Present(..)
            | Message::Leaving(_)
            | Message::Sessions(..)
            | Message::Ask(..)
            | Message::Told(..) => {}
        }
        self.obey(before, now, out);
    }

    fn handle_announcement(&mut self, message: Message, now: Now, out: &mut Vec<Action>) {
        match message {
            Message::Present(server, format) => self.presence.handle(server, format, now.running),
            Message::Leaving(server) => self.presence.forget(server),
            Message::Sessions(server, sessions) if server != self.server => {
                out.extend(sessions.into_iter().map(Action::CloseSession));
            }
            _ => {}
        }
    }

    /// Handles an answer of the stream of a shard.
    pub(crate) fn handle_log(
        &mut self,
        shard: ShardId,
        reply: LogReply,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        if let Some(shard) = self.shards.get_mut(shard as usize) {
            shard.seat.handle_log(reply, now, out);
        }
    }

    /// Takes the storage of all replicas of a shard's stream. Messages are refused while one
    /// of them has too little free space.
    pub(crate) fn handle_storage(&mut self, shard: ShardId, replicas: &[Storage]) {
        if let Some(shard) = self.shards.get_mut(shard as usize) {
            shard
                .seat
                .handle_storage(replicas.iter().any(|storage| storage.is_low()));
        }
    }

    /// Takes the time for which the machine has been suspended since it started: a clock that
    /// stands still meanwhile does not show it. If it has increased by much, all connections
    /// close: they may hold old commands. The flows would find that, too, but only when the
    /// owners can be reached.
    pub(crate) fn handle_suspended(
        &mut self,
        suspended: Duration,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let former = self.suspended.replace(suspended).unwrap_or(suspended);
        if suspended.saturating_sub(former) > timing::SUSPENDED_MAX {
            tracing::warn!("the machine was suspended: closing all connections");
            let before = out.len();
            out.push(Action::CloseAll);
            self.obey(before, now, out);
        }
    }

    /// Submits a request of a connection to a shard, to be sent by [`Self::flush`]. The
    /// answer is an [`Action::Answer`], unless the request has none. Names are requested by
    /// [`Self::list`].
    pub(crate) fn submit(
        &mut self,
        shard: ShardId,
        (connection, request): (ConnectionId, u64),
        content: Request,
        now: Now,
    ) {
        let send = SendTo {
            shard,
            request,
            content,
        };
        if let Some(send) = self.send_order.submit(connection, send, now.running) {
            self.pass_on(connection, send, now);
        }
    }

    fn pass_on(&mut self, connection: ConnectionId, send: SendTo, now: Now) {
        let SendTo {
            shard,
            request,
            content,
        } = send;
        if let Some(shard) = self.shards.get_mut(shard as usize) {
            shard.link.submit(connection, request, content, now);
        }
    }

    /// Sends the submitted requests.
    pub(crate) fn flush(&mut self, now: Now, out: &mut Vec<Action>) {
        self.shards
            .iter_mut()
            .for_each(|shard| shard.link.flush(now, out));
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
        self.shards
            .iter()
            .all(|shard| shard.link.owner(now).is_some())
    }

    /// Returns the live servers, as far as this one hears them.
    pub(crate) fn servers(&self) -> impl Iterator<Item = ServerId> {
        self.presence.servers()
    }

    /// Returns the owner of each shard, if there is a flow to it.
    pub(crate) fn owners(&self, now: Now) -> impl Iterator<Item = Option<ServerId>> {
        self.shards.iter().map(move |shard| shard.link.owner(now))
    }

    /// Returns whether this server owns no shard.
    pub(crate) fn owns_nothing(&self) -> bool {
        self.shards_owned() == 0
    }

    /// Returns the number of shards that this server owns.
    pub(crate) fn shards_owned(&self) -> usize {
        let owned = self.shards.iter();
        owned.filter(|shard| shard.seat.owner().is_some()).count()
    }

    /// Requests the first names after `after`, in byte order: at most `limit`. The answer is
    /// [`Answer::Names`], possibly with fewer names than exist, or [`Reply::Unavailable`] if
    /// a shard has no owner until the deadline.
    pub(crate) fn list(
        &mut self,
        (connection, request): (ConnectionId, u64),
        after: Option<&UserName>,
        limit: u32,
        now: Now,
    ) {
        let limit = self
            .listings
            .begin((connection, request), limit, self.shards.len() as u32);
        for shard in &mut self.shards {
            let content = Request::Names {
                after: after.cloned(),
                limit,
            };
            shard.link.submit(connection, request, content, now);
        }
    }

    /// Announces a session that was opened at this server. A connection of this server that
    /// held it is closed already.
    pub(crate) fn open_session(&mut self, session: SessionToken, now: Now, out: &mut Vec<Action>) {
        self.sessions.open(session.clone(), now.running);
        out.push(Action::Broadcast(Message::Sessions(
            self.server,
            vec![session],
        )));
    }

    /// Ends the announcements of a session that is closed at this server.
    pub(crate) fn close_session(&mut self, session: &SessionToken) {
        self.sessions.close(session);
    }

    /// Handles the end of a connection. Its changes that are on their way to an owner
    /// continue.
    #[cfg(any(test, feature = "maelstrom"))]
    pub(crate) fn disconnect(&mut self, connection: ConnectionId, now: Now, out: &mut Vec<Action>) {
        self.listings.disconnect(connection);
        self.send_order.drop_sends(connection);
        self.shards
            .iter_mut()
            .for_each(|shard| shard.link.disconnect(connection, now, out));
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
        self.hand_over(now, out);
        for (connection, request) in self.send_order.late(now.running) {
            out.push(Action::Answer {
                connection,
                request,
                reply: Reply::Unavailable,
            });
            out.push(Action::Close(connection));
        }
        if self.presence.tick(now.running) {
            out.push(Action::Broadcast(Message::Present(
                self.server,
                self.newest_format,
            )));
        }
        let format = self.presence.format(now.running);
        let servers: Vec<_> = self.presence.servers().collect();
        let may_claim = !self.is_tool || servers.is_empty();
        for (shard, Shard { seat, link }) in (0..).zip(&mut self.shards) {
            seat.set_format(format);
            let rank = assignment::rank(shard, self.server, servers.iter().copied());
            seat.set_rank(rank, may_claim);
            seat.tick(now, out);
            link.tick(now, out);
        }
        for sessions in self.sessions.due(now.running).chunks(timing::ANNOUNCED_MAX) {
            out.push(Action::Broadcast(Message::Sessions(
                self.server,
                sessions.into(),
            )));
        }
        self.obey(before, now, out);
    }

    /// Releases all shards that it owns, and ends its flows. From here on, it acts as no
    /// account.
    pub(crate) fn leave(&mut self, now: Now, out: &mut Vec<Action>) {
        let before = out.len();
        self.presence.leave();
        out.push(Action::Broadcast(Message::Leaving(self.server)));
        for Shard { seat, link } in &mut self.shards {
            link.leave(out);
            seat.leave(now, out);
        }
        self.obey(before, now, out);
    }

    /// Hands over the next shard for which another live server is preferred, if all is
    /// quiet.
    fn hand_over(&mut self, now: Now, out: &mut Vec<Action>) {
        if let Some((shard, claim)) = self.handovers.under_way()
            && let Some(Shard { seat, link }) = self.shards.get(shard as usize)
        {
            let owner = match seat.owner() {
                Some(owner) => (owner.claim != claim).then_some(self.server),
                None => link.owner(now),
            };
            self.handovers.handle(owner, now.running);
        }
        if !self.handovers.is_due(now.running) {
            return;
        }
        for (shard, Shard { seat, .. }) in (0..).zip(&mut self.shards) {
            let Some((claim, format)) = seat.may_hand_over(now) else {
                continue;
            };
            let steady = self.presence.steady(format, now.running);
            let servers = steady.chain([self.server]);
            let preferred = assignment::preferred(shard, servers);
            if let Some(to) = preferred.filter(|to| *to != self.server) {
                self.handovers.begin((shard, claim), to, now.running);
                return seat.hand_over(to, now, out);
            }
        }
    }

    /// Returns the seats in the order of the shards.
    #[cfg(test)]
    pub(super) fn seats(&self) -> impl Iterator<Item = &Seat> {
        self.shards.iter().map(|shard| &shard.seat)
    }

    /// Handles the consequences of the actions from `before` on: holds back what a
    /// connection must not learn yet, drops the commands of closing connections at every
    /// link, before the caller closes them, submits the sends that waited for answers, and
    /// merges the pages of a list.
    fn obey(&mut self, before: usize, now: Now, out: &mut Vec<Action>) {
        let mut answered = Vec::new();
        for action in out.split_off(before) {
            let is_held = match &action {
                Action::Close(connection) => self.close(*connection),
                Action::CloseAll => {
                    self.send_order.drop_all_sends();
                    self.shards
                        .iter_mut()
                        .for_each(|shard| shard.link.drop_all_commands());
                    false
                }
                Action::Answer {
                    connection,
                    request,
                    reply: Reply::Answer(Answer::Sent(_)),
                } => {
                    answered.push((*connection, *request));
                    false
                }
                Action::Answer {
                    connection,
                    request,
                    reply: Reply::Unavailable,
                } => self.send_order.is_undecided(*connection, *request),
                _ => false,
            };
            if !is_held {
                out.push(action);
            }
        }
        for (connection, request) in answered {
            self.send_order.answered(connection, request);
            while let Some(send) = self.send_order.next(connection, now.running) {
                self.pass_on(connection, send, now);
            }
        }
        for (connection, undecided) in self.send_order.take_closed() {
            out.extend(undecided.into_iter().map(|request| Action::Answer {
                connection,
                request,
                reply: Reply::Unavailable,
            }));
            out.push(Action::Close(connection));
        }
        self.listings.merge(before, out);
    }

    /// Begins to close a connection. Returns whether it has sends in flight, and so closes
    /// later.
    fn close(&mut self, connection: ConnectionId) -> bool {
        let is_held = self.send_order.begin_close(connection);
        for shard in &mut self.shards {
            for request in shard.link.drop_commands(connection) {
                self.send_order.answered(connection, request);
            }
        }
        is_held
    }
}
