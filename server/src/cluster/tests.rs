//! Tests of single rules of ownership and of flows, on the servers of one shard. Messages and answers of the stream arrive at once, unless they are cut.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use hark_protocol::{Sequence, SessionToken, UserName};

use super::entry::{Content, Entry, NEWEST_FORMAT};
use super::member::Member;
use super::message::{Answer, Message, Reply, Request, Up};
use super::owner::Owner;
use super::seat::Seat;
use super::sim::stream::{Outcome, Stream};
use super::{Action, Config, ConnectionId, LogRequest, Now, ServerId, Storage};
use crate::ledger::{Expiry, Limits, RoomLimits, SpaceLimits};
use crate::store::{Account, Append, Created, End, Event, Page, Position, ReadLimit, Subscription};

pub(super) const LIMITS: Limits = Limits {
    accounts_max: 10,
    sessions_max: 10,
    queued_messages_max: 1000,
    queued_bytes_max: 1 << 20,
    rooms: RoomLimits::DEFAULT,
    space: SpaceLimits::NONE,
    expiry: Expiry::NONE,
};

const TICK: Duration = Duration::from_millis(250);

/// The servers of a shard.
struct Servers {
    time: Duration,
    hosts: Vec<Host>,
    stream: Stream,
    mail: VecDeque<(usize, Message)>,
    /// Pairs of servers that cannot communicate, by direction.
    cut: BTreeSet<(usize, usize)>,
    /// Servers that receive nothing from the stream.
    deaf: BTreeSet<usize>,
    /// Servers whose requests to the stream take this time, and their requests.
    slow: BTreeMap<usize, Duration>,
    waiting: VecDeque<(Duration, usize, LogRequest)>,
    /// Messages of owners to other servers arrive half a second late.
    are_owners_late: bool,
    late: Vec<(Duration, usize, Message)>,
    /// Reads of single messages are lost.
    are_gets_lost: bool,
    /// The number of these reads.
    gets: usize,
    requests: u64,
}

type Act<'a> = Box<dyn FnOnce(&mut Member, Now, &mut Vec<Action>) + 'a>;

struct Host {
    member: Member,
    is_paused: bool,
    /// The total time for which clocks stood still.
    lost: Duration,
    /// Answers, closings and opened flows, in order.
    events: Vec<String>,
    subscriptions: BTreeMap<ConnectionId, Subscription>,
    pages: Vec<Page>,
}

impl Host {
    fn owner(&self) -> &Owner {
        self.member.seats().next().and_then(Seat::owner).unwrap()
    }
}

impl Servers {
    fn new(count: u64, config: Config) -> Self {
        let ids: Vec<_> = (1..=count).map(ServerId).collect();
        let host = |id: &ServerId| Host {
            member: Member::new(*id, &ids, 1, config),
            is_paused: false,
            lost: Duration::ZERO,
            events: Vec::new(),
            subscriptions: BTreeMap::new(),
            pages: Vec::new(),
        };
        let hosts = ids.iter().map(host).collect();
        Self {
            time: Duration::ZERO,
            hosts,
            stream: Stream::default(),
            mail: VecDeque::new(),
            cut: BTreeSet::new(),
            deaf: BTreeSet::new(),
            slow: BTreeMap::new(),
            waiting: VecDeque::new(),
            are_owners_late: false,
            late: Vec::new(),
            are_gets_lost: false,
            gets: 0,
            requests: 0,
        }
    }

    /// Returns servers of which one owns the shard, and the index of that one.
    fn owned(count: u64) -> (Self, usize) {
        let mut servers = Self::new(count, Config::new(LIMITS));
        servers.run(6.0);
        let owner = servers.owner().unwrap();
        (servers, owner)
    }

    /// Returns two servers, the index of the one that owns the shard, and that of the other.
    fn pair() -> (Self, usize, usize) {
        let (servers, owner) = Self::owned(2);
        (servers, owner, 1 - owner)
    }

    /// Stops a server orderly.
    fn leave(&mut self, host: usize) {
        self.act(host, |member, now, out| member.leave(now, out));
    }

    /// Stops a server and its clocks.
    fn pause(&mut self, host: usize) {
        self.hosts[host].is_paused = true;
    }

    fn resume(&mut self, host: usize) {
        self.hosts[host].is_paused = false;
    }

    /// Lets time pass until a server owns the shard. Returns the seconds.
    #[track_caller]
    fn run_until_owned_by(&mut self, host: usize) -> f64 {
        self.run_until(|servers| servers.owner() == Some(host))
    }

    fn owner(&self) -> Option<usize> {
        let owner = |host: &Host| {
            host.member
                .seats()
                .next()
                .and_then(|seat| seat.owner())
                .map(|owner| owner.claim)
        };
        let claims = self.hosts.iter().map(owner).enumerate();
        claims
            .filter_map(|(host, claim)| Some((claim?.sequence, host)))
            .max()
            .map(|(_, host)| host)
    }

    /// Returns the number of claims in the stream.
    fn claims(&self) -> usize {
        let messages = self.stream.messages().1.iter();
        let entries = messages.filter_map(|message| Entry::decode(message, NEWEST_FORMAT).ok());
        entries
            .filter(|(entry, _)| matches!(entry.content, Content::Claim { .. }))
            .count()
    }

    /// Returns the format of the last entry.
    fn format(&self) -> u8 {
        self.stream.messages().1.last().unwrap()[0]
    }

    /// Lets time pass.
    fn run(&mut self, seconds: f64) {
        let end = self.time + Duration::from_secs_f64(seconds);
        while self.time < end {
            self.time += TICK;
            while let Some((_, host, request)) =
                self.waiting.pop_front_if(|(at, ..)| *at <= self.time)
            {
                self.carry_out(host, request);
            }
            let late = self.late.extract_if(.., |(at, ..)| *at <= self.time);
            let late: Vec<_> = late.map(|(_, to, message)| (to, message)).collect();
            self.mail.extend(late);
            for host in 0..self.hosts.len() {
                match self.hosts[host].is_paused {
                    true => self.hosts[host].lost += TICK,
                    false => self.act(host, |member, now, out| member.tick(now, out)),
                }
            }
        }
    }

    /// Lets time pass until a condition holds. Returns the seconds.
    #[track_caller]
    fn run_until(&mut self, is_so: impl Fn(&Self) -> bool) -> f64 {
        let begun = self.time;
        while !is_so(self) {
            assert!(
                self.time < begun + Duration::from_secs(200),
                "it is never so"
            );
            self.run(0.25);
        }
        (self.time - begun).as_secs_f64()
    }

    fn act(&mut self, host: usize, act: impl FnOnce(&mut Member, Now, &mut Vec<Action>)) {
        self.act_boxed(host, Box::new(act));
    }

    fn act_boxed(&mut self, host: usize, act: Act<'_>) {
        let running = self.time - self.hosts[host].lost;
        let now = Now {
            running,
            wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.time,
        };
        let mut actions = Vec::new();
        act(&mut self.hosts[host].member, now, &mut actions);
        actions
            .into_iter()
            .for_each(|action| self.perform(host, action));
        while let Some((to, message)) = self.mail.pop_front() {
            if !self.hosts[to].is_paused {
                self.act_boxed(
                    to,
                    Box::new(|member, now, out| member.handle_message(message, now, out)),
                );
            }
        }
    }

    fn perform(&mut self, host: usize, action: Action) {
        let event = match action {
            Action::Log(_, request) => return self.ask_stream(host, request),
            Action::Send(ServerId(id), message) => {
                let to = id as usize - 1;
                if matches!(message, Message::Up(_, _, Up::Open)) {
                    self.hosts[host].events.push("open".to_owned());
                }
                let is_down = matches!(message, Message::Down(..));
                if self.are_owners_late && is_down && host != to {
                    let at = self.time + Duration::from_millis(500);
                    self.late.push((at, to, message));
                } else if !self.cut.contains(&(host, to)) {
                    self.mail.push_back((to, message));
                }
                return;
            }
            Action::Broadcast(message) => {
                let to = (0..self.hosts.len()).filter(|to| !self.cut.contains(&(host, *to)));
                return self.mail.extend(to.map(|to| (to, message.clone())));
            }
            Action::Answer {
                connection,
                reply: Reply::Subscribed(Some(mut subscription)),
                ..
            } => {
                subscription.follow();
                self.hosts[host]
                    .subscriptions
                    .insert(connection, subscription);
                format!("{connection} subscribed")
            }
            Action::Answer {
                connection, reply, ..
            } => match reply {
                Reply::Answer(Answer::Account(entry)) => {
                    format!(
                        "{connection} account {:?}",
                        entry.map(|entry| entry.account.incarnation)
                    )
                }
                Reply::Answer(Answer::Page(page)) => return self.hosts[host].pages.push(page),
                Reply::Answer(answer) => format!("{connection} {answer:?}"),
                Reply::Unavailable => format!("{connection} unavailable"),
                Reply::Subscribed(_) => format!("{connection} not subscribed"),
            },
            Action::Publish(publisher, event) => return publisher.publish(event),
            Action::EndIdentity(connection) => format!("{connection} ends"),
            Action::Close(connection) => format!("{connection} closes"),
            Action::CloseSession(session) => format!("session {} closes", session.as_str()),
            Action::CloseAll => "all close".to_owned(),
        };
        self.hosts[host].events.push(event);
    }

    fn ask_stream(&mut self, host: usize, request: LogRequest) {
        match self.slow.get(&host) {
            Some(delay) => self.waiting.push_back((self.time + *delay, host, request)),
            None => self.carry_out(host, request),
        }
    }

    fn carry_out(&mut self, host: usize, request: LogRequest) {
        if matches!(request, LogRequest::Get { .. }) {
            self.gets += 1;
            if self.are_gets_lost {
                return;
            }
        }
        let reply = match self.stream.handle(request, (host, 0)) {
            Outcome::Reply(reply) => reply,
            Outcome::Proposed => self.stream.apply().unwrap().1,
            Outcome::Nothing => return,
        };
        if !self.deaf.contains(&host) && !self.hosts[host].is_paused {
            self.act_boxed(
                host,
                Box::new(|member, now, out| member.handle_log(0, reply, now, out)),
            );
        }
    }

    fn submit(&mut self, host: usize, connection: ConnectionId, request: Request) {
        self.requests += 1;
        let id = self.requests;
        self.act(host, |member, now, out| {
            member.submit(0, (connection, id), request, now);
            member.flush(now, out);
        });
    }

    /// Takes the events of a server.
    fn events(&mut self, host: usize) -> Vec<String> {
        std::mem::take(&mut self.hosts[host].events)
    }

    #[track_caller]
    fn check(&mut self, host: usize, expected: &[&str]) {
        assert_eq!(self.events(host), expected);
    }

    #[track_caller]
    fn create(&mut self, host: usize, user: &str) -> Account {
        self.submit(host, 1, Request::Create(name(user), None));
        self.submit(host, 1, Request::LookUp(name(user)));
        let events = self.events(host);
        assert!(
            events.contains(&format!("1 {:?}", Answer::Created(Created::Created))),
            "{events:?}"
        );
        let found = events.last().unwrap();
        let incarnation = found
            .trim_start_matches("1 account Some(")
            .trim_end_matches(')')
            .parse()
            .unwrap();
        Account {
            name: name(user),
            incarnation,
        }
    }

    /// Returns whether the deletion of connection 8 was answered.
    fn deleted(&self, host: usize) -> bool {
        let answer = format!("8 {:?}", Answer::Flag(true));
        self.hosts[host].events.contains(&answer)
    }

    fn send(&mut self, host: usize, connection: ConnectionId, to: &str, text: &str) {
        let text = text.into();
        let send = Append {
            to: name(to),
            sender: None,
            allow_anonymous: true,
            time_ms: 1,
            text,
            send_id: None,
            refusal: None,
        };
        self.submit(host, connection, Request::Send(Box::new(send)));
    }

    /// Takes the texts delivered to a subscription, "lagged", and its end.
    fn received(&mut self, host: usize, connection: ConnectionId) -> Vec<String> {
        let subscription = self.hosts[host].subscriptions.get_mut(&connection).unwrap();
        let mut received = Vec::new();
        while let Some(event) = subscription.next_event() {
            match event {
                Event::Appended(messages) => {
                    received.extend(messages.iter().map(|message| message.text.to_string()))
                }
                Event::Lagged => {
                    received.push("lagged".to_owned());
                    subscription.follow();
                }
                Event::Ended(end) => {
                    received.push(format!("{end:?}"));
                    break;
                }
            }
        }
        received
    }
}

fn name(name: &str) -> UserName {
    name.parse().unwrap()
}

fn subscribe(account: &Account) -> Request {
    Request::Subscribe {
        account: account.clone(),
        takes_over: true,
    }
}

#[test]
fn suspended_machine_closes_all_connections() {
    let (mut servers, _) = Servers::owned(1);
    for (suspended, closes) in [(500, false), (560, false), (621, true), (640, false)] {
        servers.hosts[0].events.clear();
        servers.act(0, |member, now, out| {
            member.submit(0, (1, 1), Request::LookUp("ann".parse().unwrap()), now);
            member.handle_suspended(Duration::from_secs(suspended), now, out);
            member.flush(now, out);
        });
        let expected = if closes {
            "all close"
        } else {
            "1 account None"
        };
        assert_eq!(servers.hosts[0].events, [expected], "{suspended}");
    }
}

#[test]
fn silent_owner_is_replaced_within_three_seconds() {
    let (mut servers, owner) = Servers::owned(3);
    servers.pause(owner);
    let seconds = servers.run_until(|servers| servers.owner() != Some(owner));
    assert!((1.5..3.0).contains(&seconds), "{seconds}");
}

#[test]
fn owner_that_only_appends_is_replaced_after_ten_seconds() {
    let (mut servers, owner, other) = Servers::pair();
    servers.create(owner, "ann");
    servers.cut.insert((owner, other));
    let begun = servers.time;
    while servers.owner() == Some(owner) {
        servers.send(owner, 1, "ann", "text");
        servers.run(0.25);
    }
    let seconds = (servers.time - begun).as_secs_f64();
    assert!((9.0..12.0).contains(&seconds), "{seconds}");
}

#[test]
fn released_shard_is_claimed_at_once() {
    let (mut servers, owner) = Servers::owned(2);
    servers.leave(owner);
    let seconds = servers.run_until(|servers| servers.owner().is_some());
    assert!(seconds < 0.8, "{seconds}");
}

#[test]
fn deposed_server_waits_longer_each_time() {
    let (mut servers, _) = Servers::owned(2);
    let mut waits = Vec::new();
    for _ in 0..3 {
        // The owner stands still until the other one has claimed the shard and left.
        let owner = servers.owner().unwrap();
        servers.pause(owner);
        servers.run_until(|servers| servers.owner() != Some(owner));
        servers.resume(owner);
        servers.submit(owner, 1, Request::LookUp(name("ann")));
        servers.run(1.0);
        let other = servers.owner().unwrap();
        servers.pause(other);
        waits.push(servers.run_until_owned_by(owner));
        servers.resume(other);
        servers.run(1.5);
    }
    assert!(
        waits[0] >= 4.0 && waits.iter().max_by(|a, b| a.total_cmp(b)) > Some(&8.0),
        "{waits:?}"
    );
}

#[test]
fn change_is_unavailable_after_20_seconds_and_its_append_pending() {
    let (mut servers, owner) = Servers::owned(1);
    servers.create(owner, "ann");
    servers.deaf.insert(owner);
    servers.submit(owner, 7, Request::Create(name("bob"), None));
    servers.run(15.0);
    servers.submit(owner, 8, Request::LookUp(name("bob")));
    servers.check(owner, &[]);
    servers.run(6.0);
    let events = servers.events(owner);
    assert_eq!(
        events[..3],
        ["7 unavailable", "7 closes", "open"],
        "{events:?}"
    );
    servers.deaf.clear();
    servers.run(5.0);
    let events = servers.events(owner);
    assert!(
        events
            .iter()
            .any(|event| event.starts_with("8 account Some")),
        "{events:?}"
    );
    servers.submit(owner, 9, Request::LookUp(name("bob")));
    let events = servers.events(owner);
    assert!(events[0].starts_with("9 account Some"), "{events:?}");
}

#[test]
fn connections_close_before_the_flow_opens_again() {
    let (mut servers, owner, other) = Servers::pair();
    servers.create(owner, "ann");
    servers.events(other);
    servers.cut.insert((owner, other));
    servers.send(other, 7, "ann", "first");
    servers.submit(other, 8, Request::LookUp(name("ann")));
    servers.run(1.0);
    servers.cut.clear();
    servers.run(3.0);
    // The answer was lost; the heartbeat reveals that the flow is broken.
    let events = servers.events(other);
    assert_eq!(
        events[..3],
        ["7 unavailable", "7 closes", "open"],
        "{events:?}"
    );
    assert!(
        events[3].starts_with("8 account Some"),
        "it is asked again: {events:?}"
    );
}

#[test]
fn server_that_stood_still_closes_everything_first() {
    let (mut servers, _, other) = Servers::pair();
    servers.create(other, "ann");
    servers.pause(other);
    servers.run(60.0);
    servers.resume(other);
    servers.events(other);
    servers.send(other, 7, "ann", "old");
    let events = servers.events(other);
    assert_eq!(
        events,
        ["7 unavailable", "7 closes", "open", "all close", "open"]
    );
    servers.send(other, 8, "ann", "new");
    assert!(servers.events(other)[0].starts_with("8 Sent"));
}

#[test]
fn server_that_stood_still_is_found_by_the_next_owner() {
    let (mut servers, owner) = Servers::owned(3);
    let [quiet, other] = [1, 2].map(|step| (owner + step) % 3);
    servers.create(other, "ann");
    servers.pause(quiet);
    servers.run(60.0);
    servers.pause(owner);
    servers.run_until_owned_by(other);
    servers.events(quiet);
    servers.resume(quiet);
    servers.run(1.0);
    assert!(servers.events(quiet).contains(&"all close".to_owned()));
}

#[test]
fn change_of_the_owner_closes_no_idle_connection() {
    let (mut servers, owner, other) = Servers::pair();
    let ann = servers.create(other, "ann");
    servers.submit(other, 7, subscribe(&ann));
    servers.pause(owner);
    servers.run_until_owned_by(other);
    servers.run(1.0);
    let events = servers.events(other);
    assert!(
        events
            .iter()
            .all(|event| event == "7 subscribed" || event == "open"),
        "{events:?}"
    );
    servers.send(other, 8, "ann", "hello");
    assert!(servers.received(other, 7).ends_with(&["hello".to_owned()]));
}

#[test]
fn later_subscription_wins_over_one_that_continues() {
    let (mut servers, owner, other) = Servers::pair();
    let ann = servers.create(owner, "ann");
    servers.submit(other, 7, subscribe(&ann));
    servers.cut.extend([(owner, other), (other, owner)]);
    servers.submit(owner, 8, subscribe(&ann));
    servers.cut.clear();
    servers.run(4.0);
    assert!(
        servers
            .received(other, 7)
            .ends_with(&["TakenOver".to_owned()])
    );
    servers.send(owner, 9, "ann", "hello");
    assert!(servers.received(owner, 8).ends_with(&["hello".to_owned()]));
}

#[test]
fn server_without_credit_lags_and_blocks_nobody() {
    let mut servers = Servers::new(
        2,
        Config {
            window_bytes: 2000,
            ..Config::new(LIMITS)
        },
    );
    servers.run(6.0);
    let owner = servers.owner().unwrap();
    let other = 1 - owner;
    let [ann, bob] = ["ann", "bob"].map(|user| servers.create(owner, user));
    servers.submit(other, 7, subscribe(&ann));
    servers.submit(owner, 8, subscribe(&bob));
    servers.received(other, 7);
    servers.received(owner, 8);
    servers.cut.insert((other, owner));
    for text in ["1", "2", "3", "4"] {
        for user in ["ann", "bob"] {
            servers.send(owner, 9, user, &text.repeat(600));
            servers.run(0.5);
        }
    }
    assert_eq!(servers.received(owner, 8).len(), 4);
    assert!(servers.received(other, 7).len() < 4);
    servers.cut.clear();
    servers.run(3.0);
    assert_eq!(servers.received(other, 7), ["lagged"]);
}

#[test]
fn account_is_deleted_once_no_server_acts_as_it() {
    let (mut servers, owner, other) = Servers::pair();
    let ann = servers.create(owner, "ann");
    servers.submit(other, 7, Request::Register(ann.clone()));
    servers.events(other);
    servers.submit(owner, 8, Request::Delete(ann));
    servers.check(other, &["7 ends"]);
    servers.check(owner, &["8 Flag(true)"]);
}

#[test]
fn deletion_waits_for_a_lost_server() {
    let (mut servers, owner, other) = Servers::pair();
    let ann = servers.create(owner, "ann");
    servers.submit(other, 7, Request::Register(ann.clone()));
    servers.pause(other);
    servers.run(7.0);
    servers.submit(owner, 8, Request::Delete(ann));
    let seconds = servers.run_until(|servers| servers.deleted(owner));
    assert!((30.0..32.0).contains(&seconds), "{seconds}");
}

#[test]
fn next_owner_waits_for_servers_out_of_reach() {
    for returns in [false, true] {
        let (mut servers, owner) = Servers::owned(3);
        let [quiet, next] = [1, 2].map(|step| (owner + step) % 3);
        let ann = servers.create(owner, "ann");
        servers.submit(quiet, 7, Request::Register(ann.clone()));
        servers.pause(quiet);
        servers.pause(owner);
        servers.run_until_owned_by(next);
        servers.run(1.0);
        servers.submit(next, 8, Request::Delete(ann));
        servers.run(12.0);
        assert!(
            !servers.deleted(next),
            "the quiet one may act as the account"
        );
        if returns {
            servers.resume(quiet);
            servers.resume(owner);
        }
        let seconds = servers.run_until(|servers| servers.deleted(next));
        let expected = if returns { 0.0..2.0 } else { 15.0..18.0 };
        assert!(expected.contains(&seconds), "{seconds}");
    }
}

#[test]
fn deletion_after_an_orderly_stop_is_immediate() {
    let (mut servers, owner, other) = Servers::pair();
    let ann = servers.create(other, "ann");
    servers.submit(owner, 7, Request::Register(ann.clone()));
    servers.leave(owner);
    servers.pause(owner);
    servers.run_until_owned_by(other);
    servers.run(0.75);
    servers.submit(other, 8, Request::Delete(ann));
    assert!(servers.deleted(other));
}

#[test]
fn unanswered_commands_survive_an_orderly_stop() {
    let (mut servers, owner, other) = Servers::pair();
    servers.create(other, "ann");
    servers.events(other);
    // An append is in flight, and its answer is late.
    servers.deaf.insert(owner);
    servers.submit(other, 7, Request::Create(name("bob"), None));
    servers.send(other, 7, "ann", "taken");
    servers.leave(owner);
    servers.send(other, 7, "ann", "not taken");
    servers.check(other, &[]);
    servers.deaf.clear();
    servers.run(3.0);
    assert_eq!(servers.owner(), Some(other));
    let events = servers.events(other);
    let answers: Vec<_> = events.iter().filter(|event| *event != "open").collect();
    assert!(
        matches!(&answers[..], [bob, one, two] if bob.contains("Created") && one.contains("Sent(Stored") && two.contains("Sent(Stored")),
        "{events:?}"
    );
}

#[test]
fn shard_moves_to_a_preferred_server_that_joins() {
    let (mut servers, first) = Servers::owned(2);
    let second = 1 - first;
    servers.pause(first);
    servers.run_until_owned_by(second);
    servers.create(second, "ann");
    servers.resume(first);
    servers.run(1.0);
    servers.events(second);
    let begun = servers.time;
    let mut sent = 0;
    while servers.owner() != Some(first) {
        servers.send(second, 7, "ann", "text");
        sent += 1;
        servers.run(0.25);
    }
    let seconds = (servers.time - begun).as_secs_f64();
    assert!((3.0..9.0).contains(&seconds), "{seconds}");
    servers.run(1.0);
    let events = servers.events(second);
    let stored = events.iter().filter(|event| event.contains("Sent(Stored"));
    assert_eq!(stored.count(), sent, "{events:?}");
    servers.run(60.0);
    assert_eq!(servers.owner(), Some(first), "it stays there");
}

/// Returns three servers of which one stood still while another one claimed the shard, the
/// index of the former owner, and the claim of the other one.
fn with_returning_server() -> (Servers, usize) {
    let (mut servers, first) = Servers::owned(3);
    servers.pause(first);
    servers.run_until(|servers| servers.owner() != Some(first));
    servers.resume(first);
    (servers, first)
}

#[test]
fn slower_server_gets_the_shard_handed_over() {
    let (mut servers, first) = with_returning_server();
    servers.slow.insert(first, Duration::from_millis(750));
    servers.run(30.0);
    assert_eq!(servers.owner(), Some(first));
    let claims = servers.claims();
    servers.run(120.0);
    assert_eq!((servers.owner(), servers.claims()), (Some(first), claims));
}

#[test]
fn hand_over_that_fails_becomes_rare() {
    let (mut servers, first) = with_returning_server();
    servers.slow.insert(first, Duration::from_secs(100_000));
    servers.run(200.0);
    let claims = servers.claims();
    servers.run(600.0);
    assert!(
        servers.claims() - claims <= 8,
        "{claims} {}",
        servers.claims()
    );
}

#[test]
fn acknowledgement_during_a_release_counts() {
    let (mut servers, owner, other) = Servers::pair();
    let ann = servers.create(other, "ann");
    servers.send(other, 7, "ann", "text");
    servers.submit(other, 8, subscribe(&ann));
    let texts = read_all(&mut servers, other, &ann);
    assert_eq!(texts, ["text"]);
    servers.submit(other, 8, read(&ann, Position::default()));
    let page = servers.hosts[other].pages.pop().unwrap();
    let position = page.messages[0].position;
    // The release is in flight, and its answer is late.
    servers.deaf.insert(owner);
    servers.leave(owner);
    servers.submit(other, 8, Request::Acknowledge(ann.clone(), position));
    servers.act(other, |member, now, out| {
        member.unsubscribe(&ann, 8, now);
        member.flush(now, out);
    });
    servers.deaf.clear();
    servers.run(3.0);
    assert_eq!(servers.owner(), Some(other));
    assert!(read_all(&mut servers, other, &ann).is_empty());
}

#[test]
fn slow_release_ends_no_flow() {
    let (mut servers, owner, other) = Servers::pair();
    servers.create(other, "ann");
    servers.events(other);
    servers.deaf.insert(owner);
    servers.leave(owner);
    servers.send(other, 7, "ann", "text");
    servers.run(12.0);
    servers.check(other, &[]);
    servers.deaf.clear();
    servers.run(6.0);
    let events = servers.events(other);
    assert!(
        matches!(&events[..], [open, sent] if open == "open" && sent.starts_with("7 Sent(Stored")),
        "{events:?}"
    );
}

#[test]
fn pending_append_prevents_a_hand_over() {
    let (servers, owner) = Servers::owned(1);
    let mut servers = servers;
    servers.deaf.insert(owner);
    servers.send(owner, 7, "ann", "text");
    let may = |servers: &Servers| {
        let now = Now {
            running: servers.time,
            wall: UNIX_EPOCH,
        };
        servers.hosts[owner].owner().may_hand_over(now)
    };
    assert!(may(&servers));
    servers.run(1.0);
    assert!(!may(&servers));
}

#[test]
fn tool_owns_no_shard_beside_a_server() {
    for is_alone in [false, true] {
        let mut servers = Servers::new(2, Config::new(LIMITS));
        let ids = [1, 2].map(ServerId);
        let tool = Member::new(ServerId(2), &ids, 1, Config::new(LIMITS)).into_tool();
        servers.hosts[1].member = tool;
        servers.pause(1);
        servers.run(6.0);
        servers.resume(1);
        servers.run(60.0);
        assert_eq!(servers.owner(), Some(0));
        // The server is heard, and has no access to the stream.
        servers.hosts[0].is_paused = is_alone;
        servers.slow.insert(0, Duration::from_secs(100_000));
        servers.run(30.0);
        assert_eq!(servers.hosts[1].member.owns_nothing(), !is_alone);
    }
}

#[test]
fn heartbeat_before_the_release_changes_nothing() {
    let (mut servers, owner, other) = Servers::pair();
    servers.create(other, "ann");
    servers.events(other);
    servers.deaf.insert(owner);
    servers.leave(owner);
    servers.send(other, 7, "ann", "text");
    servers.run(1.0);
    servers.check(other, &[]);
    servers.are_owners_late = true;
    servers.deaf.clear();
    servers.run(6.0);
    assert_eq!(servers.owner(), Some(other));
    let events = servers.events(other);
    assert!(
        matches!(&events[..], [open, sent] if open == "open" && sent.starts_with("7 Sent(Stored")),
        "{events:?}"
    );
}

#[test]
fn owner_with_stopped_clocks_renews_no_proof() {
    let (mut servers, owner, other) = Servers::pair();
    let ann = servers.create(other, "ann");
    servers.submit(other, 6, Request::Register(ann.clone()));
    // Nothing more is stored, and the other server cannot claim.
    servers.deaf.insert(owner);
    servers.slow.insert(other, Duration::from_secs(100_000));
    let mut registered = Vec::new();
    for _ in 0..3 {
        servers.pause(owner);
        servers.run(5.5);
        servers.resume(owner);
        servers.run(2.5);
        servers.act(other, |member, now, _| {
            registered.push(member.is_registered(&ann, now));
        });
    }
    assert_eq!(registered, [true, true, false]);
}

#[test]
fn slow_append_keeps_its_owner() {
    let (mut servers, owner, other) = Servers::pair();
    let ann = servers.create(other, "ann");
    servers.submit(other, 6, Request::Register(ann.clone()));
    servers.run(10.0);
    servers.events(other);
    servers.deaf.insert(owner);
    servers.send(other, 7, "ann", "late");
    for seconds in 0..30 {
        servers.run(1.0);
        servers.act(other, |member, now, _| {
            assert!(member.is_registered(&ann, now), "{seconds}");
        });
        if seconds == 9 {
            servers.deaf.clear();
        }
    }
    assert_eq!(servers.owner(), Some(owner));
    let events = servers.events(other);
    assert!(
        matches!(&events[..], [event] if event.starts_with("7 Sent(Stored")),
        "{events:?}"
    );
}

/// Limits with which blocks soon leave the cache.
const SMALL: Config = Config {
    tail_entries_max: 20,
    tail_bytes_max: 3000,
    cache_bytes_max: 1000,
    slack_bytes: 20_000,
    ..Config::new(LIMITS)
};

fn read(account: &Account, after: Position) -> Request {
    let limit = ReadLimit {
        messages: 1000,
        bytes: 1 << 20,
    };
    Request::Read {
        account: account.clone(),
        after,
        limit,
    }
}

/// Reads an inbox page by page. Returns the texts.
fn read_all(servers: &mut Servers, host: usize, account: &Account) -> Vec<String> {
    let (mut texts, mut after) = (Vec::new(), Position::default());
    loop {
        servers.hosts[host].pages.clear();
        servers.submit(host, 7, read(account, after));
        let page = servers.hosts[host].pages.pop().expect("a page");
        if let Some(last) = page.messages.last() {
            after = last.position;
        }
        texts.extend(page.messages.iter().map(|message| message.text.to_string()));
        if page.complete {
            return texts;
        }
    }
}

#[test]
fn snapshot_purges_what_it_replaces() {
    let mut servers = Servers::new(1, SMALL);
    servers.run(6.0);
    let ann = servers.create(0, "ann");
    let texts: Vec<_> = (0..300).map(|n| n.to_string()).collect();
    for text in &texts {
        servers.send(0, 1, "ann", text);
    }
    let owner = servers.hosts[0].owner();
    let (live, stream) = (owner.blocks.live_bytes(), owner.stream_bytes());
    assert!(stream <= 3 * 3000 + 3 * live + 24_000, "{stream} of {live}");
    assert!(owner.blocks.cached_bytes() <= 1000);
    assert!(owner.blocks.len() < 100, "they are merged");
    let (first, messages) = servers.stream.messages();
    assert_eq!(
        messages
            .iter()
            .map(|message| message.len() as u64)
            .sum::<u64>(),
        stream
    );
    assert!(first > 100, "{first}");
    assert_eq!(read_all(&mut servers, 0, &ann), texts);
    // Another owner still has all messages.
    let stream = std::mem::take(&mut servers.stream);
    let mut servers = Servers::new(1, SMALL);
    servers.stream = stream;
    servers.run(12.0);
    assert_eq!(read_all(&mut servers, 0, &ann), texts);
    // Acknowledged messages free the stream.
    servers.submit(
        0,
        7,
        Request::Acknowledge(
            ann.clone(),
            Position {
                sequence: Sequence(u64::MAX),
                ..Position::default()
            },
        ),
    );
    servers.run(1.0);
    let stream = servers.hosts[0].owner().stream_bytes();
    assert!(stream <= 2 * 3000 + 2000, "{stream}");
    assert!(read_all(&mut servers, 0, &ann).is_empty());
}

#[test]
fn replay_does_not_grow_with_unread_messages() {
    let config = Config {
        cache_bytes_max: 5000,
        slack_bytes: 1 << 20,
        ..SMALL
    };
    let mut servers = Servers::new(1, config);
    servers.run(6.0);
    servers.create(0, "ann");
    for n in 0..600 {
        servers.send(0, 1, "ann", &format!("{n:0100}"));
    }
    let live = servers.hosts[0].owner().blocks.live_bytes();
    let (first, messages) = servers.stream.messages();
    let (last, _) = Entry::decode(messages.last().unwrap(), u8::MAX).unwrap();
    let replayed = &messages[(last.snapshot - first) as usize..];
    let replayed: usize = replayed.iter().map(Bytes::len).sum();
    let bound = 4 * SMALL.tail_bytes_max;
    assert!(live > 4 * bound, "{live}");
    assert!((replayed as u64) < bound, "{replayed}");
}

#[test]
fn entry_for_several_pages_is_read_once() {
    let mut servers = Servers::new(1, SMALL);
    servers.run(6.0);
    let users = ["ann", "bob", "cid"].map(|user| servers.create(0, user));
    for n in 0..100 {
        for user in &users {
            servers.send(0, 1, user.name.as_str(), &n.to_string());
        }
    }
    let stream = std::mem::take(&mut servers.stream);
    let config = Config {
        cache_bytes_max: 1 << 20,
        ..SMALL
    };
    let mut servers = Servers::new(1, config);
    (servers.stream, servers.are_gets_lost) = (stream, true);
    servers.run(12.0);
    let gets = servers.gets;
    for user in &users {
        servers.submit(0, 7, read(user, Position::default()));
    }
    assert!(servers.gets <= gets + 1, "{}", servers.gets - gets);
    servers.are_gets_lost = false;
    servers.run(1.5);
    let pages = std::mem::take(&mut servers.hosts[0].pages);
    assert_eq!(pages.len(), 3);
    assert!(pages.iter().all(|page| &*page.messages[0].text == "0"));
    assert_eq!(read_all(&mut servers, 0, &users[0]).len(), 100);
    let gets = servers.gets;
    for user in &users[1..] {
        assert_eq!(read_all(&mut servers, 0, user).len(), 100);
    }
    assert_eq!(servers.gets, gets, "the entries are in the cache");
}

/// Returns a server that does not get the oldest messages of an inbox from the stream.
fn with_lost_gets() -> (Servers, Account) {
    let mut servers = Servers::new(1, SMALL);
    servers.run(6.0);
    let ann = servers.create(0, "ann");
    (0..200).for_each(|n| servers.send(0, 1, "ann", &n.to_string()));
    servers.events(0);
    servers.are_gets_lost = true;
    servers.submit(0, 7, read(&ann, Position::default()));
    (servers, ann)
}

#[test]
fn page_outside_of_the_cache_blocks_no_command() {
    let (mut servers, _) = with_lost_gets();
    servers.send(0, 8, "ann", "next");
    servers.run(8.0);
    let events = servers.events(0);
    assert!(
        matches!(&events[..], [event] if event.starts_with("8 Sent(Stored")),
        "{events:?}"
    );
    assert!(servers.hosts[0].pages.is_empty());
    servers.are_gets_lost = false;
    servers.run(1.5);
    let page = servers.hosts[0]
        .pages
        .pop()
        .expect("the request is repeated");
    assert_eq!(&*page.messages[0].text, "0");
}

#[test]
fn page_without_an_answer_is_unavailable() {
    let (mut servers, ann) = with_lost_gets();
    servers.run(11.0);
    servers.check(0, &["7 unavailable"]);
    servers.are_gets_lost = false;
    assert_eq!(
        read_all(&mut servers, 0, &ann).len(),
        200,
        "the flow is still open"
    );
}

#[test]
fn sends_are_refused_while_a_replica_lacks_space() {
    let (mut servers, owner) = Servers::owned(1);
    servers.create(owner, "ann");
    servers.events(owner);
    let storage = |free: u64| Storage {
        free: free << 30,
        total: 100 << 30,
    };
    for (free, answer) in [(9, "8 Sent(Refused(NoSpace))"), (10, "8 Sent(Stored")] {
        servers.hosts[owner]
            .member
            .handle_storage(0, &[storage(50), storage(free)]);
        servers.send(owner, 8, "ann", "text");
        let events = servers.events(owner);
        assert!(events[0].starts_with(answer), "{events:?}");
    }
    servers.hosts[owner].member.handle_storage(
        0,
        &[Storage {
            free: (1 << 30) - 1,
            total: 2 << 30,
        }],
    );
    servers.send(owner, 8, "ann", "text");
    servers.check(owner, &["8 Sent(Refused(NoSpace))"]);
    servers.submit(owner, 8, Request::Create(name("bob"), None));
    servers.check(owner, &["8 Created(Created)"]);
}

#[test]
fn list_without_an_owner_is_unavailable() {
    let (mut servers, owner) = Servers::owned(1);
    ["bob", "ann"]
        .iter()
        .for_each(|user| _ = servers.create(owner, user));
    servers.events(owner);
    let list = |member: &mut Member, now, out: &mut Vec<Action>| {
        member.list((7, 1), None, 10, now);
        member.flush(now, out);
    };
    servers.act(owner, list);
    let names = r#"["ann", "bob"]"#;
    servers.check(
        owner,
        &[&format!("7 Names {{ names: {names}, is_complete: true }}")],
    );
    servers.deaf.insert(owner);
    servers.act(owner, list);
    servers.run(21.0);
    let events = servers.events(owner);
    assert!(
        events.iter().any(|event| event == "7 unavailable"),
        "{events:?}"
    );
}

#[test]
fn session_closes_at_every_other_server() {
    let (mut servers, _) = Servers::owned(3);
    servers.events(0);
    servers.cut.insert((0, 2));
    let session: SessionToken = "token".parse().unwrap();
    servers.act(0, |member, now, out| {
        member.open_session(session.clone(), now, out)
    });
    servers.check(0, &[]);
    assert_eq!(servers.events(1).pop().unwrap(), "session token closes");
    // A server that was cut off closes it when it is reached.
    servers.events(2);
    servers.run(25.0);
    servers.cut.clear();
    servers.run(10.0);
    assert!(
        servers
            .events(2)
            .contains(&"session token closes".to_owned())
    );
    servers.run(60.0);
    servers.events(1);
    servers.run(60.0);
    servers.check(1, &[]);
}

#[test]
fn new_format_waits_until_all_live_servers_read_it() {
    let newer = Config {
        newest_format: 2,
        ..Config::new(LIMITS)
    };
    let mut servers = Servers::new(2, newer);
    let ids = [1, 2].map(ServerId);
    servers.hosts[1].member = Member::new(ServerId(2), &ids, 1, Config::new(LIMITS));
    servers.pause(1);
    servers.run(6.0);
    servers.resume(1);
    servers.create(0, "ann");
    servers.run(60.0);
    assert_eq!(servers.format(), 1, "a live server reads no other");
    servers.pause(1);
    servers.run(6.0);
    assert_eq!(servers.format(), 1);
    servers.run(30.0);
    assert_eq!(servers.format(), 2);
    // A server that does not read it claims nothing.
    servers.pause(0);
    servers.resume(1);
    servers.run(120.0);
    assert_eq!(servers.format(), 2);
    assert!(
        servers.hosts[1]
            .member
            .seats()
            .all(|seat| seat.owner().is_none())
    );
    servers.resume(0);
    servers.run(1.0);
    servers.submit(
        0,
        7,
        Request::Names {
            after: None,
            limit: 1,
        },
    );
    assert!(servers.events(0).iter().any(|event| event.contains("ann")));
}

#[test]
fn ended_reception_of_a_deleted_account_says_so() {
    let (mut servers, owner, other) = Servers::pair();
    let ann = servers.create(owner, "ann");
    servers.submit(other, 7, subscribe(&ann));
    servers.submit(owner, 8, Request::Delete(ann));
    assert!(
        servers
            .received(other, 7)
            .ends_with(&[format!("{:?}", End::Deleted)])
    );
}
