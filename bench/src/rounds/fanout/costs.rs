//! What rooms cost `harkd` itself: memory, joins of a long room, pages of its history, and the
//! return of all members at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;

use crate::bench::{Bench, Running};
use crate::load::{Audience, Connection, on_a_runtime, open_all};
use crate::peers::{Console, Durability, Peer, ROOM, Role};
use crate::report::Section;
use crate::report::record::{Record, medians};
use crate::report::table::{Table, number};

/// The round of costs: each figure with its setting.
const COSTS: &str = "fanout, costs";

/// The joins and pages that are measured.
const SAMPLES: usize = 100;

/// The messages of a page of history.
const PAGE_MESSAGES: u32 = 100;

/// The longest time in which all members must be back.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// The settings of the round.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CostArgs {
    /// Users whose memory is measured
    #[arg(long, default_value_t = 5_000)]
    memory_users: usize,
    /// Rooms of each of them
    #[arg(long, default_value_t = 20)]
    memory_rooms: usize,
    /// Time until the allocator has returned free memory, in seconds
    #[arg(long, default_value_t = 25.0, value_parser = crate::rounds::seconds)]
    settle: f64,
    /// Messages of the room that users join
    #[arg(long, default_value_t = 1_000_000)]
    joined_messages: usize,
    /// Messages of the room whose history is read
    #[arg(long, default_value_t = 10_000_000)]
    history_messages: usize,
    /// Members that return at once
    #[arg(long, default_value_t = 10_000)]
    returning: usize,
    /// Messages that each of them has missed
    #[arg(long, default_value_t = 100)]
    missed: usize,
}

/// A cost, for the report.
struct Cost {
    figure: &'static str,
    title: &'static str,
    goal: &'static str,
}

/// The costs, in the order of the report.
const ALL: [Cost; 9] = [
    Cost {
        figure: "connected_bytes",
        title: "memory of an idle connected user without rooms, bytes",
        goal: "",
    },
    Cost {
        figure: "attached_bytes",
        title: "memory of an idle attached user without rooms, bytes",
        goal: "",
    },
    Cost {
        figure: "room_bytes",
        title: "memory of an attached member for each room, bytes",
        goal: "64",
    },
    Cost {
        figure: "membership_bytes",
        title: "memory of a membership and its cursor, attached or not, bytes",
        goal: "",
    },
    Cost {
        figure: "join_p50_ms",
        title: "`join` of a long room, median ms",
        goal: "5",
    },
    Cost {
        figure: "join_max_ms",
        title: "`join` of a long room, longest ms",
        goal: "",
    },
    Cost {
        figure: "history_p50_ms",
        title: "page of 100 of a long history, median ms",
        goal: "5",
    },
    Cost {
        figure: "history_max_ms",
        title: "page of 100 of a long history, longest ms",
        goal: "",
    },
    Cost {
        figure: "back_seconds",
        title: "all members back with the messages that they missed, s",
        goal: "4",
    },
];

impl CostArgs {
    /// Measures the costs, and adds their section to the report.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let is_ours =
            |peer: &&Arc<dyn Peer>| peer.name().starts_with("harkd") && is_durable(&***peer);
        let Some(peer) = bench.room_subjects.iter().find(is_ours).cloned() else {
            return Ok(());
        };
        bench.begin(COSTS, 4);
        bench.step("memory".to_owned());
        let taken = self.memory(bench, &peer);
        bench.take(peer.name(), taken)?;
        bench.step("joins".to_owned());
        let taken = self.joins(bench, &peer);
        bench.take(peer.name(), taken)?;
        bench.step("history".to_owned());
        let taken = self.history(bench, &peer);
        bench.take(peer.name(), taken)?;
        bench.step("return".to_owned());
        let taken = self.return_at_once(bench, &peer);
        bench.take(peer.name(), taken)?;
        let costs = medians(&bench.report.records(COSTS));
        bench.report.conclude(self.section(&costs));
        Ok(())
    }

    /// Compares the memory of users that are attached, of members that are, and of members
    /// that are not.
    fn memory(&self, bench: &mut Bench, peer: &Arc<dyn Peer>) -> anyhow::Result<Record> {
        let (users, rooms) = (self.memory_users, self.memory_rooms);
        let running = bench.start(peer, users)?;
        let names: Vec<_> = (0..rooms).map(|room| format!("#room{room}")).collect();
        let created = self.settled(&running)?;
        let connected = self.with_open(&running, peer, Role::Receiver)? - created;
        // The first attachment creates the device, which stays.
        self.with_open(&running, peer, Role::Member)?;
        let away = self.settled(&running)?;
        let attached = self.with_open(&running, peer, Role::Member)? - away;
        let mut console = Console::connect(running.server.address())?;
        console.create_rooms(&names)?;
        console.join_all(users, &names)?;
        let joined = self.settled(&running)?;
        let in_rooms = self.with_open(&running, peer, Role::Member)? - joined;
        let (users, memberships) = (users as f64, (users * rooms) as f64);
        let setting = [("users", users), ("rooms", rooms as f64)];
        Ok(Record::new(COSTS, peer.name(), &setting)
            .with("connected_bytes", connected / users)
            .with("attached_bytes", attached / users)
            .with("room_bytes", (in_rooms - attached) / memberships)
            .with("membership_bytes", (joined - away) / memberships))
    }

    /// Returns the memory once it does not shrink any more.
    fn settled(&self, running: &Running) -> anyhow::Result<f64> {
        std::thread::sleep(Duration::from_secs_f64(self.settle));
        Ok(running.server.resident_bytes()? as f64)
    }

    /// Returns the memory while all users have a connection.
    fn with_open(
        &self,
        running: &Running,
        peer: &Arc<dyn Peer>,
        role: fn(usize) -> Role,
    ) -> anyhow::Result<f64> {
        let address = running.server.address();
        on_a_runtime(async {
            let roles = (0..self.memory_users).map(role);
            let open = open_all(&**peer, address, roles).await?;
            tokio::time::sleep(Duration::from_secs_f64(self.settle)).await;
            let bytes = running.server.resident_bytes()?;
            drop(open);
            Ok(bytes as f64)
        })
    }

    fn joins(&self, bench: &mut Bench, peer: &Arc<dyn Peer>) -> anyhow::Result<Record> {
        let running = self.with_long_room(bench, peer, self.joined_messages)?;
        let mut console = Console::connect(running.server.address())?;
        let mut times = Vec::new();
        for user in 1..=SAMPLES {
            console.log_in(user)?;
            let start = Instant::now();
            let (_, held) = console.join(ROOM)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            ensure!(held == self.joined_messages as u64, "{held} messages held");
        }
        let setting = [("messages", self.joined_messages as f64)];
        let (median, longest) = spread(times);
        Ok(Record::new(COSTS, peer.name(), &setting)
            .with("join_p50_ms", median)
            .with("join_max_ms", longest))
    }

    fn history(&self, bench: &mut Bench, peer: &Arc<dyn Peer>) -> anyhow::Result<Record> {
        let running = self.with_long_room(bench, peer, self.history_messages)?;
        let mut console = Console::connect(running.server.address())?;
        console.log_in(1)?;
        let (last, held) = console.join(ROOM)?;
        let mut times = Vec::new();
        for sample in 0..SAMPLES {
            // Pages all over the room; its numbers are nearly contiguous.
            let back = held * sample as u64 / (SAMPLES + 1) as u64;
            let before = hark_protocol::Sequence(last.0 - back);
            let start = Instant::now();
            let messages = console.history(ROOM, before, PAGE_MESSAGES)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            let expected = self.history_messages.min(PAGE_MESSAGES as usize);
            ensure!(
                messages == expected || back > 0 && messages > 0,
                "a page of {messages}"
            );
        }
        let setting = [("history", self.history_messages as f64)];
        let (median, longest) = spread(times);
        Ok(Record::new(COSTS, peer.name(), &setting)
            .with("history_p50_ms", median)
            .with("history_max_ms", longest))
    }

    /// Starts a server with a room of short messages, and users that are no members.
    fn with_long_room(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        messages: usize,
    ) -> anyhow::Result<Running> {
        let running = bench.start(peer, SAMPLES + 1)?;
        let mut console = Console::connect(running.server.address())?;
        console.create_rooms(&[ROOM.to_owned()])?;
        console.fill(ROOM, messages)?;
        Ok(running)
    }

    /// Lets all members leave, sends messages, and lets the members return.
    fn return_at_once(&self, bench: &mut Bench, peer: &Arc<dyn Peer>) -> anyhow::Result<Record> {
        let running = bench.start_room(peer, self.returning)?;
        let address = running.server.address();
        on_a_runtime(async {
            let roles = (0..self.returning).map(Role::Joining);
            drop(open_all(&**peer, address, roles).await?);
            let mut speaker = Connection::open(address, peer.codec(Role::Speaker(0))).await?;
            for number in 0..self.missed {
                let stamp = crate::load::text::Stamp {
                    due_ns: 0,
                    sender: 0,
                    number: u32::try_from(number)?,
                };
                let text = stamp.write();
                speaker.codec.send(0, &text, &mut speaker.output);
            }
            while speaker.received.accepted < self.missed {
                speaker.turn().await?;
            }
            let seconds = self.come_back(peer, address).await?;
            let setting = [
                ("members", self.returning as f64),
                ("missed", self.missed as f64),
            ];
            Ok(Record::new(COSTS, peer.name(), &setting).with("back_seconds", seconds))
        })
    }

    /// Returns the time until all members have what they missed.
    async fn come_back(
        &self,
        peer: &Arc<dyn Peer>,
        address: std::net::SocketAddr,
    ) -> anyhow::Result<f64> {
        let (start, mut members) = (Instant::now(), JoinSet::new());
        for user in 0..self.returning {
            let (codec, missed) = (peer.codec(Role::Member(user)), self.missed);
            members.spawn_local(async move {
                let mut connection = Connection::open(address, codec).await?;
                let mut arrivals = Audience::Room.arrivals(user, 1, 1);
                let mut new = 0;
                loop {
                    for stamp in connection.received.delivered.drain(..) {
                        new += usize::from(arrivals.take(stamp)?);
                    }
                    if new == missed {
                        let lost = arrivals.faults(&[u32::try_from(missed)?]);
                        ensure!(lost == Default::default(), "{lost:?}");
                        connection.flush().await?;
                        return Ok(connection);
                    }
                    connection.turn().await?;
                }
            });
        }
        let mut open = Vec::new();
        let all = async {
            while let Some(member) = members.join_next().await {
                // The connections stay open, as those of real users do.
                open.push(member??);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(BACK_WITHIN, all)
            .await
            .context("some members were not back in time")??;
        Ok(start.elapsed().as_secs_f64())
    }

    fn section(&self, records: &[Record]) -> Section {
        let mut table = Table::new("Costs of rooms", &["cost", "harkd, durable", "goal"]);
        for Cost {
            figure,
            title,
            goal,
        } in ALL
        {
            let value = records.iter().find_map(|record| record.figure(figure));
            table.push(vec![title.to_owned(), number(value), goal.to_owned()]);
        }
        Section {
            title: "Costs of rooms",
            text: format!(
                "Memory is that of the process with {} users, each a member of {} rooms; it is \
                 compared after {} s, when the allocator has returned free memory. A room of {} \
                 messages is joined {SAMPLES} times, and one of {} messages read at {SAMPLES} \
                 places. {} members return at once, each {} messages behind. The bytes on disk \
                 for a message and member (none), a membership (at most 48), a device (at most \
                 80) and a room in which it lags (16) are asserted by tests of the ledger.",
                self.memory_users,
                self.memory_rooms,
                self.settle,
                self.joined_messages,
                self.history_messages,
                self.returning,
                self.missed,
            ),
            tables: vec![table],
            plots: Vec::new(),
        }
    }
}

fn is_durable(peer: &dyn Peer) -> bool {
    peer.durability() == Durability::OnDisk
}

/// Returns the median and the maximum.
fn spread(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_unstable_by(f64::total_cmp);
    let at = |at: usize| times.get(at).copied().unwrap_or(f64::NAN);
    (at(times.len() / 2), at(times.len().saturating_sub(1)))
}
