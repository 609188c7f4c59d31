//! A room: its messages to all members, at full speed and paced; the time until the last
//! member has one; and what rooms cost `harkd`.

mod costs;

use std::sync::Arc;
use std::time::Duration;

use crate::bench::Bench;
use crate::load::{Audience, Load, LoadModel, Outcome};
use crate::peers::{Peer, SPEAKERS_MAX};
use crate::report::Section;
use crate::report::record::{Record, medians};
use crate::report::table::{Table, count, number, ratio};
use crate::rounds::{Limits, by_setting, seconds};

use costs::CostArgs;

/// The round at full speed.
const SATURATED: &str = "fanout";

/// The round at a given rate.
const PACED: &str = "fanout, paced";

/// The round of single messages.
const LAST: &str = "fanout, last";

/// The settings of the round.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FanoutArgs {
    /// Time of each measurement, in seconds
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    fanout_seconds: f64,
    /// Time of the load before a measurement, in seconds
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    fanout_warm_up: f64,
    /// Repetitions, of which the median is taken
    #[arg(long, default_value_t = 3)]
    fanout_rounds: usize,
    /// Members of a room, and messages that they together do not have yet, at full speed, as
    /// `1000x64`; may be repeated
    #[arg(long = "room", default_values = ["1000x64", "10000x16"])]
    rooms: Vec<RoomShape>,
    /// Senders at full speed
    #[arg(long, default_value_t = 4)]
    speakers: usize,
    /// Members of the room at a given rate
    #[arg(long, default_value_t = 1_000)]
    paced_members: usize,
    /// The given rate, in messages per second
    #[arg(long, default_value_t = 250.0)]
    room_rate: f64,
    /// Members of the room that gets single messages
    #[arg(long, default_value_t = 10_000)]
    last_members: usize,
    #[command(flatten)]
    costs: CostArgs,
}

/// The members of a room, and its messages in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoomShape {
    members: usize,
    in_flight: usize,
}

impl std::str::FromStr for RoomShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('x');
        let parsed = parts.and_then(|(members, in_flight)| {
            Some(Self {
                members: members.parse().ok().filter(|count| *count > 0)?,
                in_flight: in_flight.parse().ok().filter(|count| *count > 0)?,
            })
        });
        parsed.ok_or_else(|| "a room is members and messages in flight, such as 1000x64".to_owned())
    }
}

impl FanoutArgs {
    /// Runs the round, and adds its sections to the report.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let subjects = bench.room_subjects.clone();
        let steps = self.rooms.len() + 2;
        bench.begin(SATURATED, self.fanout_rounds * subjects.len() * steps);
        for _ in 0..self.fanout_rounds {
            for peer in &subjects {
                for shape in &self.rooms {
                    self.saturate(bench, peer, *shape)?;
                }
                self.pace(bench, peer)?;
                self.send_singly(bench, peer)?;
            }
        }
        let saturated = medians(&bench.report.records(SATURATED));
        let paced = medians(&bench.report.records(PACED));
        let last = medians(&bench.report.records(LAST));
        bench.report.conclude(section(&saturated, &paced, &last));
        self.costs.run(bench)
    }

    fn saturate(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        shape: RoomShape,
    ) -> anyhow::Result<()> {
        let RoomShape { members, in_flight } = shape;
        bench.step(format!("{}, {members} members", peer.name()));
        if members > peer.members_max() {
            return Ok(());
        }
        let pace = LoadModel::Delivered { in_flight };
        let outcome = self.load(bench, peer, self.speakers.min(SPEAKERS_MAX), members, pace);
        let setting = [
            ("members", members as f64),
            ("in flight", in_flight as f64),
            ("senders", self.speakers as f64),
        ];
        let record = outcome.map(|outcome| {
            let per_million = 1e6 / outcome.delivered.max(1) as f64;
            common(Record::new(SATURATED, peer.name(), &setting), &outcome)
                .with(
                    "server_cpu_seconds_per_million",
                    outcome.server_cpu_seconds * per_million,
                )
                .with(
                    "load_cpu_seconds_per_million",
                    outcome.load_cpu_seconds * per_million,
                )
        });
        bench.take(peer.name(), record)
    }

    fn pace(&self, bench: &mut Bench, peer: &Arc<dyn Peer>) -> anyhow::Result<()> {
        let (members, per_second) = (self.paced_members, self.room_rate);
        bench.step(format!("{}, {per_second} a second", peer.name()));
        if members > peer.members_max() {
            return Ok(());
        }
        let outcome = self.load(bench, peer, 1, members, LoadModel::Open { per_second });
        let setting = [("members", members as f64), ("rate", per_second)];
        let record =
            outcome.map(|outcome| common(Record::new(PACED, peer.name(), &setting), &outcome));
        bench.take(peer.name(), record)
    }

    fn send_singly(&self, bench: &mut Bench, peer: &Arc<dyn Peer>) -> anyhow::Result<()> {
        let members = self.last_members.min(peer.members_max());
        bench.step(format!("{}, single messages", peer.name()));
        let outcome = self.load(bench, peer, 1, members, LoadModel::OneByOne);
        let record = outcome.map(|outcome| {
            let mut spans_ns = outcome.spans_ns;
            spans_ns.sort_unstable();
            let at = |share: f64| {
                let at = (spans_ns.len().saturating_sub(1)) as f64 * share;
                spans_ns
                    .get(at as usize)
                    .map_or(f64::NAN, |ns| *ns as f64 / 1e6)
            };
            Record::new(LAST, peer.name(), &[("members", members as f64)])
                .with("messages", spans_ns.len() as f64)
                .with("p50_ms", at(0.5))
                .with("max_ms", at(1.0))
        });
        bench.take(peer.name(), record)
    }

    fn load(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        senders: usize,
        members: usize,
        pace: LoadModel,
    ) -> anyhow::Result<Outcome> {
        let running = bench.start_room(peer, members)?;
        let load = Load {
            senders,
            receivers: members,
            slow_receivers: 0,
            audience: Audience::Room,
            pace,
            warm_up: Duration::from_secs_f64(self.fanout_warm_up),
            measured: Duration::from_secs_f64(self.fanout_seconds),
        };
        load.run(peer, &running.server)
    }
}

/// Adds the figures that all rounds have.
fn common(record: Record, outcome: &Outcome) -> Record {
    let ms = |quantile| outcome.latencies.value_at_quantile(quantile) as f64 / 1e6;
    record
        .with(
            "delivered_per_second",
            outcome.delivered as f64 / outcome.seconds,
        )
        .with(
            "accepted_per_second",
            outcome.accepted as f64 / outcome.seconds,
        )
        .with("p50_ms", ms(0.5))
        .with("p99_ms", ms(0.99))
        .with("lost", outcome.faults.lost as f64)
        .with("repeated", outcome.faults.repeated as f64)
}

fn section(saturated: &[Record], paced: &[Record], last: &[Record]) -> Section {
    let saturated = by_setting(saturated);
    let mut tables: Vec<Table> = saturated.iter().map(|of| saturated_table(of)).collect();
    tables.extend(by_setting(paced).iter().map(|of| paced_table(of)));
    tables.extend(by_setting(last).iter().map(|of| last_table(of)));
    Section {
        title: "Fan-out",
        text: "Members of one room, connected and acknowledging on one thread, get every message. \
               At full speed, the senders keep a number of messages in flight that the members \
               together do not have yet. Latency is the time from a message's due time to its \
               receipt by a member. The relays copy each message to all members. Mosquitto has a \
               topic with QoS 1, NATS core a subject, JetStream a stream with a consumer for each \
               member, ngircd a channel. JetStream and ngircd take part with at most 1,000 \
               members. Servers without a queue drop or disconnect a member that is slow."
            .to_owned(),
        tables,
        plots: Vec::new(),
    }
}

fn saturated_table(records: &[&Record]) -> Table {
    let setting = |name| count(records.first().and_then(|record| record.with_what(name)));
    let mut table = Table::new(
        format!(
            "Full speed: {} members, {} messages in flight",
            setting("members"),
            setting("in flight")
        ),
        &[
            "server",
            "deliveries/s",
            "of relay",
            "of relay, synced",
            "messages/s",
            "p50 ms",
            "p99 ms",
            "server CPU s/million",
            "load CPU s/million",
            "lost",
            "repeated",
        ],
    );
    let limits = Limits::among(records);
    for record in records {
        let figure = |name| number(record.figure(name));
        let delivered = record.figure("delivered_per_second");
        table.push(vec![
            record.subject.clone(),
            figure("delivered_per_second"),
            ratio(delivered, limits.bare("delivered_per_second")),
            ratio(delivered, limits.logged("delivered_per_second")),
            figure("accepted_per_second"),
            figure("p50_ms"),
            figure("p99_ms"),
            figure("server_cpu_seconds_per_million"),
            figure("load_cpu_seconds_per_million"),
            count(record.figure("lost")),
            count(record.figure("repeated")),
        ]);
    }
    table
}

fn paced_table(records: &[&Record]) -> Table {
    let setting = |name| count(records.first().and_then(|record| record.with_what(name)));
    let mut table = Table::new(
        format!(
            "Paced: {} messages per second to {} members",
            setting("rate"),
            setting("members")
        ),
        &[
            "server",
            "deliveries/s",
            "p50 ms",
            "p99 ms",
            "lost",
            "repeated",
        ],
    );
    for record in records {
        let figure = |name| number(record.figure(name));
        table.push(vec![
            record.subject.clone(),
            figure("delivered_per_second"),
            figure("p50_ms"),
            figure("p99_ms"),
            count(record.figure("lost")),
            count(record.figure("repeated")),
        ]);
    }
    table
}

fn last_table(records: &[&Record]) -> Table {
    let members = count(records.first().and_then(|of| of.with_what("members")));
    let mut table = Table::new(
        format!("From the accepted send to the last of {members} members"),
        &["server", "messages", "median ms", "longest ms"],
    );
    for record in records {
        table.push(vec![
            record.subject.clone(),
            count(record.figure("messages")),
            number(record.figure("p50_ms")),
            number(record.figure("max_ms")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_two_numbers() {
        let shape = RoomShape {
            members: 10,
            in_flight: 4,
        };
        assert_eq!("10x4".parse(), Ok(shape));
        for wrong in ["", "10", "10x", "0x4", "10x0", "1x2x3"] {
            wrong.parse::<RoomShape>().unwrap_err();
        }
    }
}
