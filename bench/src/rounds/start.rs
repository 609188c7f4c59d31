//! The time until `harkd` serves again after a kill, by the size of its store; and the cost of
//! a compaction after messages are received.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::bench::{Bench, Running};
use crate::load::queue::Backlog;
use crate::load::text::TEXT_BYTES;
use crate::load::{Connection, on_a_runtime};
use crate::peers::{Durability, Peer, Role};
use crate::report::Section;
use crate::report::plot::{Axis, Line, Plot};
use crate::report::record::{Record, medians};
use crate::report::table::{Table, count, number};
use crate::server::{Server, folder_bytes};

/// The round of starts.
const START: &str = "start";

/// The round of the compaction.
const COMPACTION: &str = "compaction";

/// The time without writes and processor use after which a server is idle.
const QUIET_AFTER: Duration = Duration::from_secs(2);

/// The longest wait for that.
const QUIET_WITHIN: Duration = Duration::from_secs(120);

/// The time after which a start is not repeated.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// The messages sent before a compaction.
const COMPACTED_MESSAGES: usize = 1_000_000;

/// The recipients of the messages.
const USERS: usize = 1_000;

const MIB: f64 = (1 << 20) as f64;

/// The settings of the round.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct StartArgs {
    /// Queued messages at a start, for 1000 users; may be repeated
    #[arg(long = "queued", default_values_t = [0, 10_000, 100_000, 1_000_000, 10_000_000])]
    queued: Vec<usize>,
    /// Accounts at a start, without messages; may be repeated
    #[arg(long = "accounts", default_values_t = [10_000, 100_000, 1_000_000])]
    accounts: Vec<usize>,
    /// Repetitions of each start; fewer if one takes long
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// Messages that are received before a compaction; 0 skips it
    #[arg(long, default_value_t = COMPACTED_MESSAGES)]
    compacted: usize,
}

impl StartArgs {
    /// Runs the round, and adds its section to the report.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let Some(peer) = durable(bench) else { return Ok(()) };
        let settings: Vec<(usize, usize)> = (self.queued.iter().map(|&messages| (messages, USERS)))
            .chain(self.accounts.iter().map(|&accounts| (0, accounts)))
            .collect();
        bench.begin(START, settings.len() + 1);
        for (messages, accounts) in settings {
            bench.step(format!("{messages} messages, {accounts} accounts"));
            if let Err(error) = self.starts(bench, &peer, messages, accounts) {
                bench.say(&format!("{messages} messages were not measured: {error:#}"));
            }
        }
        if self.compacted > 0 {
            bench.step(format!("compaction of {} messages", self.compacted));
            let taken = self.compaction(bench, &peer);
            bench.take(peer.name(), taken)?;
        }
        let starts = medians(&bench.report.records(START));
        bench.report.conclude(section(&starts, &bench.report.records(COMPACTION)));
        Ok(())
    }

    fn starts(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        messages: usize,
        accounts: usize,
    ) -> anyhow::Result<()> {
        let mut running = bench.start(peer, accounts)?;
        fill(&running, peer, messages, accounts)?;
        let first = Instant::now();
        for number in 0..self.starts {
            if number > 0 && first.elapsed() > STARTS_WITHIN {
                break;
            }
            let start = Instant::now();
            running.restart(Server::kill)?;
            // The end of the former process does not count; it is short, and holds the port until
            // then.
            running.server.wait_until_it_listens()?;
            let address = running.server.address();
            on_a_runtime(Connection::open(address, peer.codec(Role::Sender(0))))?;
            let seconds = start.elapsed().as_secs_f64();
            let setting = [("messages", messages as f64), ("accounts", accounts as f64)];
            let record = Record::new(START, peer.name(), &setting)
                .with("serving_after_seconds", seconds)
                .with("store_bytes", folder_bytes(running.folder())? as f64)
                .with("resident_bytes", running.server.resident_bytes()? as f64);
            bench.report.add(record)?;
        }
        Ok(())
    }

    /// Fills and drains the inboxes, and waits for the end of the compaction.
    fn compaction(&self, bench: &mut Bench, peer: &Arc<dyn Peer>) -> anyhow::Result<Record> {
        let running = bench.start(peer, USERS)?;
        let server = &running.server;
        let before = server.written_bytes()?;
        let (backlog, filled) = fill(&running, peer, self.compacted, USERS)?;
        let after_fill = server.written_bytes()?;
        let full_bytes = folder_bytes(running.folder())?;
        backlog.drain(&filled, peer, server.address(), 64, Duration::MAX)?;
        let after_drain = server.written_bytes()?;
        let seconds = wait_until_quiet(server)?;
        let after = server.written_bytes()?;
        let texts = (self.compacted * TEXT_BYTES) as f64;
        let of_texts = |from: u64, to: u64| (to - from) as f64 / texts;
        Ok(Record::new(COMPACTION, peer.name(), &[("messages", self.compacted as f64)])
            .with("fill_written_per_text", of_texts(before, after_fill))
            .with("drain_written_per_text", of_texts(after_fill, after_drain))
            .with("compaction_written_per_text", of_texts(after_drain, after))
            .with("written_per_text", of_texts(before, after))
            .with("compaction_seconds", seconds)
            .with("full_store_bytes", full_bytes as f64)
            .with("store_bytes", folder_bytes(running.folder())? as f64))
    }
}

/// Returns the server whose starts are measured: the durable one.
fn durable(bench: &Bench) -> Option<Arc<dyn Peer>> {
    let is_ours =
        |peer: &&Arc<dyn Peer>| peer.name().starts_with("harkd") && peer.durability() == Durability::OnDisk;
    bench.subjects.iter().find(is_ours).cloned()
}

fn fill(
    running: &Running,
    peer: &Arc<dyn Peer>,
    messages: usize,
    users: usize,
) -> anyhow::Result<(Backlog, crate::load::queue::Filled)> {
    let backlog = Backlog { users, senders: 8, messages, in_flight: 512 };
    let filled = backlog.send(&**peer, running.server.address(), Duration::MAX)?;
    ensure!(filled.messages() == messages as u64, "not all was accepted");
    Ok((backlog, filled))
}

/// Waits until a server is idle. Returns how long it was busy, in seconds.
fn wait_until_quiet(server: &Server) -> anyhow::Result<f64> {
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    let start = Instant::now();
    let mut last_change = start;
    let mut last = (server.written_bytes()?, server.cpu_seconds()?);
    while last_change.elapsed() < QUIET_AFTER {
        ensure!(start.elapsed() < QUIET_WITHIN, "the server does not become idle");
        std::thread::sleep(LOOK_EVERY);
        let now = (server.written_bytes()?, server.cpu_seconds()?);
        // A few timer ticks do not count as work.
        if now.0 != last.0 || now.1 > last.1 + 0.02 {
            (last, last_change) = (now, Instant::now());
        }
    }
    Ok((last_change - start).as_secs_f64())
}

fn section(starts: &[Record], compactions: &[Record]) -> Section {
    let of_messages = |record: &&Record| record.with_what("accounts") == Some(USERS as f64);
    let of_accounts = |record: &&Record| record.with_what("messages") == Some(0.0);
    let mut tables = vec![start_table(starts)];
    tables.extend((!compactions.is_empty()).then(|| compaction_table(compactions)));
    let line = |name: &str, x: &str, figure: &str, scale: f64, records: Vec<&Record>| Line {
        name: name.to_owned(),
        points: records
            .iter()
            .filter_map(|record| Some((record.with_what(x)?, record.figure(figure)? / scale)))
            .collect(),
    };
    let messages: Vec<&Record> = starts.iter().filter(of_messages).collect();
    let accounts: Vec<&Record> = starts.iter().filter(of_accounts).collect();
    let seconds = "serving_after_seconds";
    Section {
        title: "Start",
        text: "The time from exec to the first answer after `kill -9`, by the number of messages queued for 1,000 users, \
               or of accounts without messages. Then a queue is received, and the server left alone until it is idle; \
               the bytes written are compared with the bytes of the texts."
            .to_owned(),
        tables,
        plots: vec![
            Plot {
                name: "start-messages",
                title: "Serving again, over queued messages".to_owned(),
                x: ("queued messages", Axis::Log),
                y: ("seconds", Axis::Log),
                lines: vec![line("harkd", "messages", seconds, 1.0, messages)],
            },
            Plot {
                name: "start-accounts",
                title: "Serving again, over accounts".to_owned(),
                x: ("accounts", Axis::Log),
                y: ("seconds, MiB", Axis::Log),
                lines: vec![
                    line("seconds", "accounts", seconds, 1.0, accounts.clone()),
                    line("resident MiB", "accounts", "resident_bytes", MIB, accounts),
                ],
            },
        ],
    }
}

fn start_table(records: &[Record]) -> Table {
    let mut table = Table::new(
        "Serving again after kill -9",
        &["messages", "accounts", "seconds", "store MiB", "resident MiB"],
    );
    for record in records {
        let mib = |name| number(record.figure(name).map(|bytes| bytes / MIB));
        table.push(vec![
            count(record.with_what("messages")),
            count(record.with_what("accounts")),
            number(record.figure("serving_after_seconds")),
            mib("store_bytes"),
            mib("resident_bytes"),
        ]);
    }
    table
}

fn compaction_table(records: &[Record]) -> Table {
    let mut table = Table::new(
        "Bytes written for each byte of text",
        &[
            "messages",
            "filling",
            "draining",
            "compacting",
            "in all",
            "compacting, s",
            "store full, MiB",
            "store empty, MiB",
        ],
    );
    for record in records {
        let figure = |name| number(record.figure(name));
        let mib = |name| number(record.figure(name).map(|bytes| bytes / MIB));
        table.push(vec![
            count(record.with_what("messages")),
            figure("fill_written_per_text"),
            figure("drain_written_per_text"),
            figure("compaction_written_per_text"),
            figure("written_per_text"),
            figure("compaction_seconds"),
            mib("full_store_bytes"),
            mib("store_bytes"),
        ]);
    }
    table
}
