//! A longer mixed load: senders at a fixed rate, some slow readers, users that connect and
//! leave, and long lists. Memory must stay flat.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::task::JoinSet;

use crate::bench::Bench;
use crate::load::{Audience, Connection, Load, LoadModel, Outcome, on_a_runtime};
use crate::peers::{Hark, Peer, Role};
use crate::report::Section;
use crate::report::plot::{Axis, Line, Plot};
use crate::report::record::{Record, median};
use crate::report::table::{Table, count, number, ratio};
use crate::rounds::{seconds, subjects};
use crate::server::Server;

/// The round, with a record for each sample of the memory.
const SAMPLES: &str = "soak, memory";

/// The summary of the round.
const SOAK: &str = "soak";

/// The number of senders, and of receivers.
const SENDERS: usize = 16;

/// The number of slow receivers.
const SLOW: usize = 8;

/// The number of users that connect and leave.
const PASSERS: usize = 1_000;

/// The number of listed accounts.
const ACCOUNTS: usize = 20_000;

/// The interval at which a user connects and leaves.
const CHURN_EVERY: Duration = Duration::from_millis(5);

/// The interval of the lists.
const LIST_EVERY: Duration = Duration::from_millis(200);

/// The interval of the memory samples.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The settings of the round.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SoakArgs {
    /// Duration, in seconds
    #[arg(long, default_value_t = 45.0, value_parser = seconds)]
    soak_seconds: f64,
    /// Messages per second
    #[arg(long, default_value_t = 5_000.0)]
    soak_rate: f64,
}

/// The counts of other events.
#[derive(Debug, Default)]
struct Beside {
    is_over: AtomicBool,
    passed: AtomicU64,
    lists: AtomicU64,
}

impl SoakArgs {
    /// Runs the round, and adds its section to the report.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let subjects: Vec<_> = bench
            .subjects
            .iter()
            .filter(|peer| peer.name().starts_with("harkd"))
            .cloned()
            .collect();
        bench.begin(SOAK, subjects.len());
        for peer in &subjects {
            bench.step(format!("{}, {} s", peer.name(), self.soak_seconds));
            match self.measure(bench, peer) {
                Ok(records) => records
                    .into_iter()
                    .try_for_each(|record| bench.report.add(record))?,
                Err(error) => bench.say(&format!("{} was not measured: {error:#}", peer.name())),
            }
        }
        bench
            .report
            .conclude(self.section(&bench.report.records(SOAK), &bench.report.records(SAMPLES)));
        Ok(())
    }

    fn measure(&self, bench: &mut Bench, peer: &Arc<dyn Peer>) -> anyhow::Result<Vec<Record>> {
        let running = bench.start(peer, ACCOUNTS)?;
        let server = &running.server;
        let load = Load {
            senders: SENDERS,
            receivers: SENDERS,
            slow_receivers: SLOW,
            audience: Audience::One,
            pace: LoadModel::Open {
                per_second: self.soak_rate,
            },
            warm_up: Duration::from_secs(1),
            measured: Duration::from_secs_f64(self.soak_seconds),
        };
        let beside = Beside::default();
        let (outcome, samples) = std::thread::scope(|scope| {
            let samples = scope.spawn(|| look_at_memory(peer, server, &beside));
            let others = scope.spawn(|| on_a_runtime(others(peer, server, &beside)));
            let outcome = load.run(peer, server);
            beside.is_over.store(true, Ordering::Release);
            let samples = samples
                .join()
                .map_err(|_| anyhow!("the memory sampler has panicked"))?;
            others
                .join()
                .map_err(|_| anyhow!("the connecting users have panicked"))?
                .context("beside")?;
            anyhow::Ok((outcome?, samples?))
        })?;
        let mut records = samples;
        records.push(summary(peer, &outcome, &records, &beside));
        Ok(records)
    }

    fn section(&self, soaks: &[Record], samples: &[Record]) -> Section {
        let line = |subject: String| {
            let of_subject = samples.iter().filter(|record| record.subject == subject);
            let point = |record: &Record| {
                Some((
                    record.with_what("second")?,
                    record.figure("resident_bytes")? / f64::from(1 << 20),
                ))
            };
            Line {
                points: of_subject.filter_map(point).collect(),
                name: subject,
            }
        };
        Section {
            title: "Soak",
            text: format!(
                "{} messages per second from {SENDERS} senders to {SENDERS} receivers, {SLOW} of which read only twice a \
                 second. Every {} ms one of {PASSERS} users connects and leaves, and every {} ms all {ACCOUNTS} \
                 accounts are listed. Growth compares the last quarter of the time with the second.",
                count(Some(self.soak_rate)),
                CHURN_EVERY.as_millis(),
                LIST_EVERY.as_millis(),
            ),
            tables: vec![table(soaks)],
            plots: vec![Plot {
                name: "soak-memory",
                title: "Memory over time under a mixed load".to_owned(),
                x: ("seconds", Axis::Linear),
                y: ("MiB", Axis::Linear),
                lines: subjects(samples).into_iter().map(line).collect(),
            }],
        }
    }
}

fn look_at_memory(
    peer: &Arc<dyn Peer>,
    server: &Server,
    beside: &Beside,
) -> anyhow::Result<Vec<Record>> {
    let (start, mut samples) = (Instant::now(), Vec::new());
    while !beside.is_over.load(Ordering::Acquire) {
        let setting = [("second", start.elapsed().as_secs_f64())];
        let record = Record::new(SAMPLES, peer.name(), &setting);
        samples.push(record.with("resident_bytes", server.resident_bytes()? as f64));
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(samples)
}

/// Runs the users that connect and leave, and the lists.
async fn others(peer: &Arc<dyn Peer>, server: &Server, beside: &Beside) -> anyhow::Result<()> {
    let address = server.address();
    let mut lister = Connection::open(address, Hark::lister(ACCOUNTS)).await?;
    let mut passing = JoinSet::new();
    let (mut next, mut last_passer, mut last_list) = (0, Instant::now(), Instant::now());
    let mut is_listing = false;
    while !beside.is_over.load(Ordering::Acquire) {
        if last_passer.elapsed() >= CHURN_EVERY {
            last_passer = Instant::now();
            let codec = peer.codec(Role::Receiver(SENDERS + next % PASSERS));
            passing.spawn_local(Connection::open(address, codec));
            next += 1;
        }
        while let Some(passed) = passing.try_join_next() {
            drop(passed??);
            beside.passed.fetch_add(1, Ordering::Relaxed);
        }
        if !is_listing && last_list.elapsed() >= LIST_EVERY {
            (is_listing, last_list) = (true, Instant::now());
            lister.ask_again();
        }
        // Waits for input or for the next list.
        if let Ok(turned) = tokio::time::timeout(CHURN_EVERY, lister.turn()).await {
            turned?;
        }
        if std::mem::take(&mut lister.received.accepted) > 0 && std::mem::take(&mut is_listing) {
            beside.lists.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn summary(peer: &Arc<dyn Peer>, outcome: &Outcome, samples: &[Record], beside: &Beside) -> Record {
    let quarter = |number: usize| {
        let each = samples.len() / 4;
        let part = samples.iter().skip(number * each).take(each);
        median(
            part.filter_map(|sample| sample.figure("resident_bytes"))
                .collect(),
        )
    };
    let ms = |quantile| outcome.latencies.value_at_quantile(quantile) as f64 / 1e6;
    let mut record = Record::new(SOAK, peer.name(), &[])
        .with(
            "delivered_per_second",
            outcome.delivered as f64 / outcome.seconds,
        )
        .with("p50_ms", ms(0.5))
        .with("passed", beside.passed.load(Ordering::Relaxed) as f64)
        .with("lists", beside.lists.load(Ordering::Relaxed) as f64)
        .with("lost", outcome.faults.lost as f64)
        .with("repeated", outcome.faults.repeated as f64);
    // A short run cannot be divided into quarters.
    for (name, number) in [("second_quarter_bytes", 1), ("last_quarter_bytes", 3)] {
        if let Some(bytes) = quarter(number) {
            record = record.with(name, bytes);
        }
    }
    record
}

fn table(records: &[Record]) -> Table {
    let mut table = Table::new(
        "The mix as a whole",
        &[
            "server",
            "delivered/s",
            "p50 ms",
            "came and went",
            "lists",
            "second quarter MiB",
            "last quarter MiB",
            "growth",
            "lost",
            "repeated",
        ],
    );
    for record in records {
        let figure = |name| record.figure(name);
        let mib = |name| number(figure(name).map(|bytes| bytes / f64::from(1 << 20)));
        table.push(vec![
            record.subject.clone(),
            number(figure("delivered_per_second")),
            number(figure("p50_ms")),
            count(figure("passed")),
            count(figure("lists")),
            mib("second_quarter_bytes"),
            mib("last_quarter_bytes"),
            ratio(figure("last_quarter_bytes"), figure("second_quarter_bytes")),
            count(figure("lost")),
            count(figure("repeated")),
        ]);
    }
    table
}
