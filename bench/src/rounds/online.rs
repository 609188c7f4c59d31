//! Messages between online users: throughput and latency in a closed loop, and latency at a
//! given rate in an open loop.

use std::sync::Arc;
use std::time::Duration;

use crate::bench::Bench;
use crate::load::{Audience, Load, LoadModel, Outcome};
use crate::peers::Peer;
use crate::report::Section;
use crate::report::plot::{Axis, Line, Plot};
use crate::report::record::{Record, medians};
use crate::report::table::{Table, count, number, ratio};
use crate::rounds::{Limits, by_setting, seconds, subjects};

/// The closed loop.
const CLOSED: &str = "online";

/// The open loop.
const OPEN: &str = "online, paced";

/// The largest fraction of a subject's throughput that is used as a rate.
const LOAD_MAX: f64 = 0.8;

/// The rate at which latencies are compared, in messages per second.
const COMPARED_PER_SECOND: f64 = 2_000.0;

/// The settings of the round.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OnlineArgs {
    /// Time of each measurement, in seconds
    #[arg(long, default_value_t = 1.5, value_parser = seconds)]
    seconds: f64,
    /// Time of the load before a measurement, in seconds
    #[arg(long, default_value_t = 0.4, value_parser = seconds)]
    warm_up: f64,
    /// Repetitions, of which the median is taken
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Senders, receivers and sends in flight for each sender, as `8x8x64`; may be repeated
    #[arg(long = "shape", default_values = ["8x8x64", "64x64x64", "1x1x1"])]
    shapes: Vec<Shape>,
    /// Messages per second of all senders in the open loop; may be repeated
    #[arg(long = "rate", default_values_t = [2_000.0, 20_000.0, 60_000.0, 150_000.0, 400_000.0])]
    rates: Vec<f64>,
    /// Senders in the open loop, and as many receivers
    #[arg(long, default_value_t = 8)]
    paced_senders: usize,
}

/// The shape of a load: senders, receivers and sends in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    senders: usize,
    receivers: usize,
    in_flight: usize,
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        /// The most sends in flight: the limit of a session of Hark.
        const IN_FLIGHT_MAX: usize = hark_protocol::limits::SENDS_UNANSWERED_MAX;
        let parts: Option<Vec<usize>> = text.split('x').map(|part| part.parse().ok()).collect();
        match parts.as_deref() {
            Some(
                &[
                    senders @ 1..10_000,
                    receivers @ 1..10_000,
                    in_flight @ 1..=IN_FLIGHT_MAX,
                ],
            ) => Ok(Self {
                senders,
                receivers,
                in_flight,
            }),
            _ => {
                Err("a shape is senders, receivers and sends in flight, such as 8x8x64".to_owned())
            }
        }
    }
}

impl OnlineArgs {
    /// Runs the round, and adds its section to the report.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let subjects = bench.subjects.clone();
        bench.begin(CLOSED, self.rounds * self.shapes.len() * subjects.len());
        for _ in 0..self.rounds {
            for shape in &self.shapes {
                for peer in &subjects {
                    bench.step(format!("{}, {shape}", peer.name()));
                    let taken = self.closed(bench, peer, *shape);
                    bench.take(peer.name(), taken)?;
                }
            }
        }
        let closed = medians(&bench.report.records(CLOSED));
        bench.begin(OPEN, self.rates.len() * subjects.len());
        for rate in &self.rates {
            for peer in &subjects {
                bench.step(format!("{}, {rate} a second", peer.name()));
                if is_borne(&closed, peer.name(), *rate) {
                    // The rate of the comparison is repeated like the closed loop.
                    let rounds = if *rate <= COMPARED_PER_SECOND {
                        self.rounds
                    } else {
                        1
                    };
                    for _ in 0..rounds {
                        let taken = self.open(bench, peer, *rate);
                        bench.take(peer.name(), taken)?;
                    }
                }
            }
        }
        let open = medians(&bench.report.records(OPEN));
        bench.report.conclude(section(&closed, &open));
        Ok(())
    }

    fn closed(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        shape: Shape,
    ) -> anyhow::Result<Record> {
        let Shape {
            senders,
            receivers,
            in_flight,
        } = shape;
        let outcome = self.load(
            bench,
            peer,
            senders,
            receivers,
            LoadModel::Closed { in_flight },
        )?;
        let setting = [
            ("senders", senders as f64),
            ("receivers", receivers as f64),
            ("in flight", in_flight as f64),
        ];
        Ok(record(Record::new(CLOSED, peer.name(), &setting), &outcome))
    }

    fn open(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        per_second: f64,
    ) -> anyhow::Result<Record> {
        let count = self.paced_senders;
        let outcome = self.load(bench, peer, count, count, LoadModel::Open { per_second })?;
        let setting = [
            ("senders", count as f64),
            ("receivers", count as f64),
            ("rate", per_second),
        ];
        Ok(record(Record::new(OPEN, peer.name(), &setting), &outcome))
    }

    fn load(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        senders: usize,
        receivers: usize,
        pace: LoadModel,
    ) -> anyhow::Result<Outcome> {
        let running = bench.start(peer, receivers)?;
        let load = Load {
            senders,
            receivers,
            slow_receivers: 0,
            audience: Audience::One,
            pace,
            warm_up: Duration::from_secs_f64(self.warm_up),
            measured: Duration::from_secs_f64(self.seconds),
        };
        load.run(peer, &running.server)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}x{}x{}", self.senders, self.receivers, self.in_flight)
    }
}

/// Returns whether a subject sustains this rate, according to its throughput.
fn is_borne(closed: &[Record], subject: &str, per_second: f64) -> bool {
    let of_subject = closed.iter().filter(|record| record.subject == subject);
    let most = of_subject
        .filter_map(|record| record.figure("delivered_per_second"))
        .reduce(f64::max);
    most.is_none_or(|most| per_second <= LOAD_MAX * most)
}

fn record(record: Record, outcome: &Outcome) -> Record {
    let record = record
        .with(
            "accepted_per_second",
            outcome.accepted as f64 / outcome.seconds,
        )
        .with(
            "delivered_per_second",
            outcome.delivered as f64 / outcome.seconds,
        )
        .with("resident_bytes", outcome.resident_bytes as f64)
        .with("compared", outcome.compared as f64)
        .with("lost", outcome.faults.lost as f64)
        .with("repeated", outcome.faults.repeated as f64);
    if outcome.latencies.is_empty() || outcome.delivered == 0 {
        return record;
    }
    let ms = |quantile| outcome.latencies.value_at_quantile(quantile) as f64 / 1e6;
    let per_100k = 100_000.0 / outcome.delivered as f64;
    record
        .with("p50_ms", ms(0.5))
        .with("p99_ms", ms(0.99))
        .with("p999_ms", ms(0.999))
        .with(
            "server_cpu_seconds_per_100k",
            outcome.server_cpu_seconds * per_100k,
        )
        .with(
            "load_cpu_seconds_per_100k",
            outcome.load_cpu_seconds * per_100k,
        )
}

fn section(closed: &[Record], open: &[Record]) -> Section {
    let mut tables: Vec<Table> = by_setting(closed)
        .iter()
        .map(|records| closed_table(records))
        .collect();
    let compared = by_setting(open);
    let compared = compared.iter().filter(|records| {
        records
            .iter()
            .any(|record| record.with_what("rate") == Some(COMPARED_PER_SECOND))
    });
    tables.extend(compared.map(|records| open_table(records)));
    Section {
        title: "Online",
        text: "All senders and receivers are connected; each sender addresses all receivers in turn. Latency is the time \
               from a message's due time to its receipt. A message is accepted when the server acknowledges it."
            .to_owned(),
        tables,
        plots: vec![
            plot("latency-p50", "Latency over load: half of the messages", open, "p50_ms"),
            plot("latency-p99", "Latency over load: 99 of 100 messages", open, "p99_ms"),
        ],
    }
}

fn closed_table(records: &[&Record]) -> Table {
    let setting = |name| count(records.first().and_then(|record| record.with_what(name)));
    let title = format!(
        "{} senders, {} receivers, {} in flight each",
        setting("senders"),
        setting("receivers"),
        setting("in flight")
    );
    let mut table = Table::new(
        title,
        &[
            "server",
            "accepted/s",
            "delivered/s",
            "of relay",
            "of relay, synced",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "CPU s/100 000",
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
            figure("accepted_per_second"),
            figure("delivered_per_second"),
            ratio(delivered, limits.bare("delivered_per_second")),
            ratio(delivered, limits.logged("delivered_per_second")),
            figure("p50_ms"),
            figure("p99_ms"),
            figure("p999_ms"),
            figure("server_cpu_seconds_per_100k"),
            count(record.figure("lost")),
            count(record.figure("repeated")),
        ]);
    }
    table
}

fn open_table(records: &[&Record]) -> Table {
    let mut table = Table::new(
        format!(
            "Paced: {} messages per second from all senders together",
            count(Some(COMPARED_PER_SECOND))
        ),
        &[
            "server",
            "delivered/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "p50 of relay, synced",
            "p99 of relay, synced",
            "CPU s/100 000",
            "lost",
            "repeated",
        ],
    );
    let limits = Limits::among(records);
    for record in records {
        let figure = |name| number(record.figure(name));
        table.push(vec![
            record.subject.clone(),
            figure("delivered_per_second"),
            figure("p50_ms"),
            figure("p99_ms"),
            figure("p999_ms"),
            ratio(record.figure("p50_ms"), limits.logged("p50_ms")),
            ratio(record.figure("p99_ms"), limits.logged("p99_ms")),
            figure("server_cpu_seconds_per_100k"),
            count(record.figure("lost")),
            count(record.figure("repeated")),
        ]);
    }
    table
}

fn plot(name: &'static str, title: &str, records: &[Record], figure: &'static str) -> Plot {
    let line = |subject: String| {
        let of_subject = records.iter().filter(|record| record.subject == subject);
        let points = of_subject
            .filter_map(|record| Some((record.with_what("rate")?, record.figure(figure)?)));
        Line {
            points: points.collect(),
            name: subject,
        }
    };
    Plot {
        name,
        title: title.to_owned(),
        x: ("messages a second", Axis::Log),
        y: ("ms", Axis::Log),
        lines: subjects(records).into_iter().map(line).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_three_numbers() {
        assert_eq!(
            "8x4x64".parse(),
            Ok(Shape {
                senders: 8,
                receivers: 4,
                in_flight: 64
            })
        );
        for wrong in ["", "8", "8x8", "8x8x0", "8x8x1025", "8x8x8x8", "ax8x8"] {
            wrong.parse::<Shape>().unwrap_err();
        }
    }

    #[test]
    fn subject_is_compared_with_limits_of_its_setting() {
        let of = |subject, rate| {
            Record::new(CLOSED, subject, &[("senders", 8.0)]).with("delivered_per_second", rate)
        };
        let records = [
            of("harkd", 150.0),
            of("limit: relay", 1000.0),
            of("limit: relay, synced file", 300.0),
        ];
        let table = closed_table(&records.iter().collect::<Vec<_>>());
        assert_eq!(table.rows[0][2..5], ["150", "0.15", "0.50"]);
    }

    #[test]
    fn unsustainable_rate_is_skipped() {
        let closed = [Record::new(CLOSED, "harkd", &[]).with("delivered_per_second", 10_000.0)];
        assert!(is_borne(&closed, "harkd", 8_000.0) && !is_borne(&closed, "harkd", 9_000.0));
        assert!(
            is_borne(&closed, "another", 9_000.0),
            "an unmeasured subject is tried"
        );
    }
}
