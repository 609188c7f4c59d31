//! Idle connections: their memory, the time to connect them, and the time until all are back
//! after a restart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;

use crate::bench::{Bench, Running};
use crate::load::queue::Backlog;
use crate::load::{Connection, on_a_runtime, prepare};
use crate::peers::{Durability, Peer, Role};
use crate::report::Section;
use crate::report::plot::{Axis, Line, Plot};
use crate::report::record::{Record, medians};
use crate::report::table::{Table, count, number};
use crate::rounds::{by_setting, subjects};
use crate::server::Server;

/// The round of memory.
const IDLE: &str = "idle";

/// The round of the restart.
const STORM: &str = "idle, restart";

/// The open files of this process and of a server, besides connections.
const OTHER_FILES: usize = 500;

/// The time until the memory of a server is read, since it peaks at the start.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// The settings of the round.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct IdleArgs {
    /// Connected users, in increasing order; may be repeated. The limit of open files bounds them
    #[arg(long = "connections", default_values_t = [100, 1_000, 10_000, 18_000])]
    connections: Vec<usize>,
    /// Unread messages of each user at the restart
    #[arg(long, default_value_t = 10)]
    backlog: usize,
    /// Users that connect at the same time, before the restart
    #[arg(long, default_value_t = 8)]
    connecting: usize,
}

impl IdleArgs {
    /// Runs the round, and adds its section to the report.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let subjects = bench.subjects.clone();
        let counts = self.counts()?;
        bench.begin(IDLE, subjects.len());
        for peer in &subjects {
            bench.step(peer.name().to_owned());
            if let Err(error) = self.measure(bench, peer, &counts) {
                bench.say(&format!(
                    "{} was measured incompletely: {error:#}",
                    peer.name()
                ));
            }
        }
        let idle = medians(&bench.report.records(IDLE));
        let storm = medians(&bench.report.records(STORM));
        bench.report.conclude(self.section(&idle, &storm)?);
        Ok(())
    }

    /// Returns the most connections within the limit of open files.
    fn counts(&self) -> anyhow::Result<Vec<usize>> {
        let files = usize::try_from(rlimit::getrlimit(rlimit::Resource::NOFILE)?.0)?;
        let most = files.saturating_sub(OTHER_FILES);
        let mut counts: Vec<usize> = self
            .connections
            .iter()
            .map(|&count| count.min(most))
            .collect();
        counts.sort_unstable();
        counts.dedup();
        counts.retain(|&count| count > 0);
        ensure!(
            !counts.is_empty(),
            "too few open files for any number of connections; raise `ulimit -n`"
        );
        Ok(counts)
    }

    /// Measures a new server for each number of users, and subtracts its memory without users.
    fn measure(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        counts: &[usize],
    ) -> anyhow::Result<()> {
        for &users in counts.iter().filter(|&&users| users <= peer.users_max()) {
            let mut running = bench.start(peer, 0)?;
            std::thread::sleep(SETTLED_AFTER);
            let empty_bytes = running.server.resident_bytes()? as f64;
            prepare(&**peer, running.server.address(), users)?;
            std::thread::sleep(SETTLED_AFTER);
            let prepared_bytes = running.server.resident_bytes()? as f64;
            let (seconds, resident_bytes) =
                on_a_runtime(self.connect(peer, &running.server, users))?;
            let record = Record::new(IDLE, peer.name(), &[("connections", users as f64)])
                .with("resident_bytes", resident_bytes)
                .with(
                    "bytes_per_user",
                    (resident_bytes - empty_bytes) / users as f64,
                )
                .with(
                    "bytes_per_connection",
                    (resident_bytes - prepared_bytes) / users as f64,
                )
                .with("connected_seconds", seconds)
                .with("connected_per_second", users as f64 / seconds);
            bench.report.add(record)?;
            if counts
                .iter()
                .all(|&more| more <= users || more > peer.users_max())
            {
                let record = self.storm(peer, &mut running, users);
                bench.take(peer.name(), record)?;
            }
        }
        Ok(())
    }

    /// Connects users. Returns the time in seconds, and the memory of the server in bytes.
    async fn connect(
        &self,
        peer: &Arc<dyn Peer>,
        server: &Server,
        users: usize,
    ) -> anyhow::Result<(f64, f64)> {
        let (start, mut connections) = (Instant::now(), Vec::new());
        let mut connecting = JoinSet::new();
        for user in 0..users {
            if connecting.len() >= self.connecting
                && let Some(connected) = connecting.join_next().await
            {
                connections.push(connected??);
            }
            let codec = peer.codec(Role::Receiver(user));
            connecting.spawn_local(Connection::open(server.address(), codec));
        }
        while let Some(connected) = connecting.join_next().await {
            connections.push(connected??);
        }
        let seconds = start.elapsed().as_secs_f64();
        tokio::time::sleep(SETTLED_AFTER).await;
        Ok((seconds, server.resident_bytes()? as f64))
    }

    /// Restarts the server, and lets all users return at once.
    fn storm(
        &self,
        peer: &Arc<dyn Peer>,
        running: &mut Running,
        users: usize,
    ) -> anyhow::Result<Record> {
        let each = if peer.durability() == Durability::OnDisk {
            self.backlog
        } else {
            0
        };
        let backlog = Backlog {
            users,
            senders: 8,
            messages: each * users,
            in_flight: 64,
        };
        let filled = backlog.send(&**peer, running.server.address(), Duration::MAX)?;
        running.restart(Server::stop)?;
        running.server.wait_until_it_listens()?;
        if each == 0 {
            prepare(&**peer, running.server.address(), users)?;
        }
        let storm = on_a_runtime(backlog.storm(&filled, peer, running.server.address()))?;
        let times = &storm.seconds;
        let at = |share: f64| {
            times
                .get(((times.len() - 1) as f64 * share) as usize)
                .copied()
                .unwrap_or(f64::NAN)
        };
        let setting = [("connections", users as f64), ("backlog", each as f64)];
        Ok(Record::new(STORM, peer.name(), &setting)
            .with("p50_seconds", at(0.5))
            .with("p99_seconds", at(0.99))
            .with("all_seconds", at(1.0))
            .with("fairness", fairness(times))
            .with("left_behind", storm.left_behind as f64)
            .with("lost", storm.faults.lost as f64)
            .with("repeated", storm.faults.repeated as f64))
    }

    fn section(&self, idle: &[Record], storm: &[Record]) -> anyhow::Result<Section> {
        let files = rlimit::getrlimit(rlimit::Resource::NOFILE)?.0;
        let mut tables: Vec<Table> = by_setting(idle)
            .iter()
            .map(|records| idle_table(records))
            .collect();
        tables.extend((!storm.is_empty()).then(|| storm_table(storm)));
        let memory = |record: &Record| Some(record.figure("resident_bytes")? / f64::from(1 << 20));
        let time = |record: &Record| record.figure("connected_seconds");
        Ok(Section {
            title: "Idle",
            text: format!(
                "Users connect, {} at a time, and stay idle. Resident memory is that of the process, without the \
                 kernel's socket buffers. The memory of a user is the growth since the server was empty: its account or \
                 session, and its connection. A process may have {files} open files here. After a restart by SIGTERM, \
                 all users return at once; a user is back once it has its backlog, if the server stores one on disk, \
                 and left behind if it is not back after 30 s. Fairness is Jain's index: 1 if all waited equally long.",
                self.connecting,
            ),
            tables,
            plots: vec![
                plot(
                    "idle-memory",
                    "Memory over connections",
                    "MiB",
                    idle,
                    memory,
                ),
                plot(
                    "idle-connect",
                    "Time to connect all users",
                    "seconds",
                    idle,
                    time,
                ),
            ],
        })
    }
}

/// Jain's index of fairness.
fn fairness(times: &[f64]) -> f64 {
    let (sum, squares) = times.iter().fold((0.0, 0.0), |(sum, squares), time| {
        (sum + time, squares + time * time)
    });
    sum * sum / (times.len() as f64 * squares)
}

fn idle_table(records: &[&Record]) -> Table {
    let connections = count(
        records
            .first()
            .and_then(|record| record.with_what("connections")),
    );
    let mut table = Table::new(
        format!("{connections} connected users"),
        &[
            "server",
            "resident MiB",
            "KiB/user",
            "of which connection",
            "seconds to connect",
            "connected/s",
        ],
    );
    for record in records {
        let scaled = |name, by: u32| number(record.figure(name).map(|bytes| bytes / f64::from(by)));
        table.push(vec![
            record.subject.clone(),
            scaled("resident_bytes", 1 << 20),
            scaled("bytes_per_user", 1 << 10),
            scaled("bytes_per_connection", 1 << 10),
            number(record.figure("connected_seconds")),
            number(record.figure("connected_per_second")),
        ]);
    }
    table
}

fn storm_table(records: &[Record]) -> Table {
    let mut table = Table::new(
        "All users back after a restart",
        &[
            "server",
            "users",
            "backlog each",
            "half s",
            "99 of 100 s",
            "all s",
            "left behind",
            "fairness",
            "lost",
            "repeated",
        ],
    );
    for record in records {
        table.push(vec![
            record.subject.clone(),
            count(record.with_what("connections")),
            count(record.with_what("backlog")),
            number(record.figure("p50_seconds")),
            number(record.figure("p99_seconds")),
            number(record.figure("all_seconds")),
            count(record.figure("left_behind")),
            number(record.figure("fairness")),
            count(record.figure("lost")),
            count(record.figure("repeated")),
        ]);
    }
    table
}

fn plot(
    name: &'static str,
    title: &str,
    unit: &'static str,
    records: &[Record],
    value: impl Fn(&Record) -> Option<f64>,
) -> Plot {
    let line = |subject: String| {
        let of_subject = records.iter().filter(|record| record.subject == subject);
        let points = of_subject
            .filter_map(|record| Some((record.with_what("connections")?, value(record)?)));
        Line {
            points: points.collect(),
            name: subject,
        }
    };
    Plot {
        name,
        title: title.to_owned(),
        x: ("connected users", Axis::Log),
        y: (unit, Axis::Log),
        lines: subjects(records).into_iter().map(line).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_waits_are_fair() {
        assert!((fairness(&[2.0; 10]) - 1.0).abs() < 1e-9);
        assert!(
            (fairness(&[0.0, 0.0, 0.0, 4.0]) - 0.25).abs() < 1e-9,
            "one waited for all"
        );
    }
}
