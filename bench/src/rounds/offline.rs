//! Messages for offline users: the rate at which they are accepted, and received when the
//! users return.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::bench::Bench;
use crate::load::queue::Backlog;
use crate::load::text::TEXT_BYTES;
use crate::peers::{Durability, Peer};
use crate::report::Section;
use crate::report::plot::{Axis, Line, Plot};
use crate::report::record::{Record, medians};
use crate::report::table::{Table, count, number, ratio};
use crate::rounds::{Limits, by_setting, seconds, subjects};

const ROUND: &str = "offline";

/// The name of the plain file as a subject.
const PLAIN_FILE: &str = "limit: plain file";

/// The settings of the round.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OfflineArgs {
    /// Messages in total
    #[arg(long, default_value_t = 1_000_000)]
    messages: usize,
    /// Recipients; may be repeated. Peers that need a connection or a consumer for each user
    /// beforehand are skipped if there are too many
    #[arg(long = "users", default_values_t = [1, 1_000, 1_000_000])]
    users: Vec<usize>,
    /// Senders
    #[arg(long, default_value_t = 8)]
    senders: usize,
    /// Sends in flight for each sender
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// Longest time to send, in seconds; a slow peer then has fewer messages
    #[arg(long, default_value_t = 8.0, value_parser = seconds)]
    fill_seconds: f64,
    /// Longest time to receive, in seconds; with a slow peer not all users return
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    drain_seconds: f64,
    /// Users that receive at the same time
    #[arg(long, default_value_t = 64)]
    at_a_time: usize,
    /// Repetitions, of which the median is taken
    #[arg(long, default_value_t = 1)]
    offline_rounds: usize,
}

impl OfflineArgs {
    /// Runs the round, and adds its section to the report.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let subjects = bench.subjects.clone();
        bench.begin(
            ROUND,
            self.offline_rounds * self.users.len() * subjects.len(),
        );
        for _ in 0..self.offline_rounds {
            for &users in &self.users {
                for peer in &subjects {
                    bench.step(format!("{}, {users} users", peer.name()));
                    if peer.durability() != Durability::Nothing && users <= peer.users_max() {
                        let taken = self.measure(bench, peer, users);
                        bench.take(peer.name(), taken)?;
                    }
                }
                let taken = self.plain_file(bench.folder(), users);
                bench.take(PLAIN_FILE, taken)?;
            }
        }
        let records = medians(&bench.report.records(ROUND));
        bench.report.conclude(self.section(&records));
        Ok(())
    }

    fn setting(&self, users: usize) -> [(&'static str, f64); 4] {
        [
            ("users", users as f64),
            ("messages", self.messages as f64),
            ("senders", self.senders as f64),
            ("in flight", self.in_flight as f64),
        ]
    }

    fn measure(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        users: usize,
    ) -> anyhow::Result<Record> {
        let running = bench.start(peer, users)?;
        let server = &running.server;
        let backlog = Backlog {
            users,
            senders: self.senders,
            messages: self.messages,
            in_flight: self.in_flight,
        };
        let (cpu, written) = (server.cpu_seconds()?, server.written_bytes()?);
        let within = Duration::from_secs_f64(self.fill_seconds);
        let filled = backlog.send(&**peer, server.address(), within)?;
        let (cpu_filled, written_filled) = (server.cpu_seconds()?, server.written_bytes()?);
        let resident_bytes = server.resident_bytes()?;
        let within = Duration::from_secs_f64(self.drain_seconds);
        let drained = backlog.drain(&filled, peer, server.address(), self.at_a_time, within)?;
        let cpu_drained = server.cpu_seconds()?;
        let messages = filled.messages() as f64;
        ensure!(messages > 0.0, "{} has accepted nothing", peer.name());
        ensure!(
            drained.messages > 0,
            "{} has delivered nothing",
            peer.name()
        );
        Ok(Record::new(ROUND, peer.name(), &self.setting(users))
            .with("accepted", messages)
            .with("accepted_per_second", messages / filled.seconds)
            .with(
                "drained_per_second",
                drained.messages as f64 / drained.seconds,
            )
            .with("users_per_second", drained.users as f64 / drained.seconds)
            .with(
                "fill_cpu_seconds_per_100k",
                (cpu_filled - cpu) * 100_000.0 / messages,
            )
            .with(
                "drain_cpu_seconds_per_100k",
                (cpu_drained - cpu_filled) * 100_000.0 / drained.messages as f64,
            )
            .with(
                "written_bytes_per_text_byte",
                (written_filled - written) as f64 / messages / TEXT_BYTES as f64,
            )
            .with("resident_bytes", resident_bytes as f64)
            .with("peak_resident_bytes", server.peak_resident_bytes()? as f64)
            .with("lost", drained.faults.lost as f64)
            .with("repeated", drained.faults.repeated as f64))
    }

    /// Measures texts appended to a file with a sync for each batch in flight.
    fn plain_file(&self, folder: &Path, users: usize) -> anyhow::Result<Record> {
        const MEASURED: Duration = Duration::from_secs(1);
        let path = folder.join("plain");
        let mut file = File::create(&path)?;
        let group = self.senders * self.in_flight;
        let texts = vec![b'x'; group * TEXT_BYTES];
        let (start, mut written) = (Instant::now(), 0);
        while start.elapsed() < MEASURED {
            file.write_all(&texts)?;
            file.sync_data()?;
            written += group;
        }
        let seconds = start.elapsed().as_secs_f64();
        std::fs::remove_file(path)?;
        let record = Record::new(ROUND, PLAIN_FILE, &self.setting(users));
        Ok(record.with("accepted_per_second", written as f64 / seconds))
    }

    fn section(&self, records: &[Record]) -> Section {
        Section {
            title: "Offline",
            text: format!(
                "{} senders with {} in flight each fill the queues of offline users. Then the users return, {} at a \
                 time, each over its own connection, and receive and acknowledge their messages, for at most {} s. \
                 Memory is sampled before they return, and its peak afterwards. The plain file is synced once per as \
                 many texts as all senders have in flight.",
                self.senders, self.in_flight, self.at_a_time, self.drain_seconds
            ),
            tables: by_setting(records)
                .iter()
                .map(|records| table(records))
                .collect(),
            plots: vec![
                plot(
                    "offline-fill",
                    "Accepted for offline users",
                    records,
                    "accepted_per_second",
                ),
                plot(
                    "offline-drain",
                    "Received at their return",
                    records,
                    "drained_per_second",
                ),
            ],
        }
    }
}

fn table(records: &[&Record]) -> Table {
    let setting = |name| count(records.first().and_then(|record| record.with_what(name)));
    let mut table = Table::new(
        format!(
            "Up to {} messages for {} users",
            setting("messages"),
            setting("users")
        ),
        &[
            "server",
            "accepted",
            "accepted/s",
            "of relay, synced",
            "drained/s",
            "of relay",
            "fill: CPU s/100 000",
            "drain: CPU s/100 000",
            "written/text",
            "full MiB",
            "peak MiB",
            "lost",
            "repeated",
        ],
    );
    let limits = Limits::among(records);
    for record in records {
        let figure = |name| number(record.figure(name));
        let mib = |name| number(record.figure(name).map(|bytes| bytes / f64::from(1 << 20)));
        table.push(vec![
            record.subject.clone(),
            count(record.figure("accepted")),
            figure("accepted_per_second"),
            ratio(
                record.figure("accepted_per_second"),
                limits.logged("accepted_per_second"),
            ),
            figure("drained_per_second"),
            ratio(
                record.figure("drained_per_second"),
                limits.bare("drained_per_second"),
            ),
            figure("fill_cpu_seconds_per_100k"),
            figure("drain_cpu_seconds_per_100k"),
            figure("written_bytes_per_text_byte"),
            mib("resident_bytes"),
            mib("peak_resident_bytes"),
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
            .filter_map(|record| Some((record.with_what("users")?, record.figure(figure)?)));
        Line {
            points: points.collect(),
            name: subject,
        }
    };
    Plot {
        name,
        title: title.to_owned(),
        x: ("users", Axis::Log),
        y: ("messages a second", Axis::Log),
        lines: subjects(records).into_iter().map(line).collect(),
    }
}
