//! How soon `harkd` serves again after it was killed, over what it has stored; and
//! what it writes for each byte of text, in new files and in those that it uses again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::bench::{Bench, Running};
use crate::load::queue::Backlog;
use crate::load::text::TEXT_BYTES;
use crate::load::{Connection, on_a_runtime};
use crate::peers::{Durability, Hark, Peer, Role};
use crate::report::Section;
use crate::report::plot::{Axis, Line, Plot};
use crate::report::record::{Record, medians};
use crate::report::table::{Table, count, number};
use crate::server::{Server, folder_bytes};

/// The round of starts.
const START: &str = "start";

/// The round of starts over large texts.
const START_TEXTS: &str = "start, texts";

/// The round of files that are used again.
const RECYCLING: &str = "recycling";

/// A server that has written nothing and used no processor for so long has done
/// what it had to.
const QUIET_AFTER: Duration = Duration::from_secs(2);

/// How long that is waited for.
const QUIET_WITHIN: Duration = Duration::from_secs(120);

/// How often messages are sent and received, besides the first time.
const RECYCLED_TIMES: usize = 3;

/// After so long there are no more starts of the same.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// Messages that are sent and received each time.
const RECYCLED_MESSAGES: usize = 1_000_000;

/// Users whom the messages are for.
const USERS: usize = 1_000;

const MIB: f64 = (1 << 20) as f64;

/// How it is measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct StartArgs {
    /// Queued messages at a start, for 1000 users; repeat it for more
    #[arg(long = "queued", default_values_t = [0, 10_000, 100_000, 1_000_000, 10_000_000])]
    queued: Vec<usize>,
    /// Accounts at a start, without messages; repeat it for more
    #[arg(long = "accounts", default_values_t = [10_000, 100_000, 1_000_000])]
    accounts: Vec<usize>,
    /// Starts of each; fewer where one takes long
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// MiB of large texts that are queued at a start; repeat it for more
    #[arg(long = "texts", value_name = "MIB", default_values_t = [10_240])]
    texts: Vec<u64>,
    /// Messages that are sent and received again and again, for what is written; 0: leave
    /// it out
    #[arg(long, default_value_t = RECYCLED_MESSAGES)]
    recycled: usize,
}

impl StartArgs {
    /// Measures, and adds to the report.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let Some(peer) = durable(bench) else {
            return Ok(());
        };
        let settings: Vec<(usize, usize)> = (self.queued.iter().map(|&messages| (messages, USERS)))
            .chain(self.accounts.iter().map(|&accounts| (0, accounts)))
            .collect();
        bench.begin(START, settings.len() + self.texts.len() + 1);
        for (messages, accounts) in settings {
            bench.step(format!("{messages} messages, {accounts} accounts"));
            if let Err(error) = self.starts(bench, &peer, messages, accounts) {
                bench.say(&format!("{messages} messages were not measured: {error:#}"));
            }
        }
        for &mib in &self.texts {
            bench.step(format!("{mib} MiB of texts"));
            if let Err(error) = self.starts_over_texts(bench, &peer, mib) {
                bench.say(&format!("{mib} MiB of texts were not measured: {error:#}"));
            }
        }
        if self.recycled > 0 {
            bench.step(format!("{} messages again and again", self.recycled));
            let taken = self.recycling(bench, &peer);
            bench.take(peer.name(), taken)?;
        }
        let starts = medians(&bench.report.records(START));
        let texts = medians(&bench.report.records(START_TEXTS));
        bench
            .report
            .conclude(section(&starts, &texts, &bench.report.records(RECYCLING)));
        Ok(())
    }

    fn starts_over_texts(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        mib: u64,
    ) -> anyhow::Result<()> {
        let mut running = bench.start(peer, USERS)?;
        Hark::send_large(running.server.address(), USERS, mib << 20)?;
        let setting = [("text_mib", mib as f64)];
        self.measure_starts(bench, peer, &mut running, &|| {
            Record::new(START_TEXTS, peer.name(), &setting)
        })
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
        let setting = [("messages", messages as f64), ("accounts", accounts as f64)];
        self.measure_starts(bench, peer, &mut running, &|| {
            Record::new(START, peer.name(), &setting)
        })
    }

    /// Kills the server and starts it again, some times.
    fn measure_starts(
        &self,
        bench: &mut Bench,
        peer: &Arc<dyn Peer>,
        running: &mut Running,
        record: &dyn Fn() -> Record,
    ) -> anyhow::Result<()> {
        let first = Instant::now();
        for number in 0..self.starts {
            if number > 0 && first.elapsed() > STARTS_WITHIN {
                break;
            }
            let start = Instant::now();
            running.restart(Server::kill)?;
            // What the end of the old one took does not count for the new one;
            // it is next to nothing, and there is no port to be had before.
            running.server.wait_until_it_listens()?;
            let address = running.server.address();
            on_a_runtime(Connection::open(address, peer.codec(Role::Sender(0))))?;
            let seconds = start.elapsed().as_secs_f64();
            let record = record()
                .with("serving_after_seconds", seconds)
                .with("store_bytes", folder_bytes(running.folder())? as f64)
                .with("resident_bytes", running.server.resident_bytes()? as f64);
            bench.report.add(record)?;
        }
        Ok(())
    }

    /// Fills and drains, the first time with files that are made and written with zeros,
    /// and then with the same ones.
    fn recycling(&self, bench: &mut Bench, peer: &Arc<dyn Peer>) -> anyhow::Result<Record> {
        let running = bench.start(peer, USERS)?;
        let server = &running.server;
        let mut written = vec![server.written_bytes()?];
        for _ in 0..=RECYCLED_TIMES {
            let (backlog, filled) = fill(&running, peer, self.recycled, USERS)?;
            backlog.drain(&filled, peer, server.address(), 64, Duration::MAX)?;
            wait_until_quiet(server)?;
            written.push(server.written_bytes()?);
        }
        let texts = (self.recycled * TEXT_BYTES) as f64;
        let of_texts = |from: usize, to: usize| match (written.get(from), written.get(to)) {
            (Some(start), Some(end)) => (end - start) as f64 / texts / (to - from) as f64,
            _ => f64::NAN,
        };
        Ok(Record::new(
            RECYCLING,
            peer.name(),
            &[("messages", self.recycled as f64)],
        )
        .with("first_written_per_text", of_texts(0, 1))
        .with("recycled_written_per_text", of_texts(1, RECYCLED_TIMES + 1))
        .with("store_bytes", folder_bytes(running.folder())? as f64))
    }
}

/// The server whose starts are measured: the one that keeps what it has.
fn durable(bench: &Bench) -> Option<Arc<dyn Peer>> {
    let is_ours = |peer: &&Arc<dyn Peer>| {
        peer.name().starts_with("harkd") && peer.durability() == Durability::OnDisk
    };
    bench.subjects.iter().find(is_ours).cloned()
}

fn fill(
    running: &Running,
    peer: &Arc<dyn Peer>,
    messages: usize,
    users: usize,
) -> anyhow::Result<(Backlog, crate::load::queue::Filled)> {
    let backlog = Backlog {
        users,
        senders: 8,
        messages,
        in_flight: 512,
    };
    let filled = backlog.send(&**peer, running.server.address(), Duration::MAX)?;
    ensure!(filled.messages() == messages as u64, "not all was accepted");
    Ok((backlog, filled))
}

/// Waits until a server does nothing more.
fn wait_until_quiet(server: &Server) -> anyhow::Result<()> {
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    let start = Instant::now();
    let mut last_change = start;
    let mut last = (server.written_bytes()?, server.cpu_seconds()?);
    while last_change.elapsed() < QUIET_AFTER {
        ensure!(
            start.elapsed() < QUIET_WITHIN,
            "the server does not get quiet"
        );
        std::thread::sleep(LOOK_EVERY);
        let now = (server.written_bytes()?, server.cpu_seconds()?);
        // A timer or two is not work.
        if now.0 != last.0 || now.1 > last.1 + 0.02 {
            (last, last_change) = (now, Instant::now());
        }
    }
    Ok(())
}

fn section(starts: &[Record], texts: &[Record], recycled: &[Record]) -> Section {
    let of_messages = |record: &&Record| record.with_what("accounts") == Some(USERS as f64);
    let of_accounts = |record: &&Record| record.with_what("messages") == Some(0.0);
    let mut tables = vec![start_table(starts)];
    tables.extend((!texts.is_empty()).then(|| texts_table(texts)));
    tables.extend((!recycled.is_empty()).then(|| recycling_table(recycled)));
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
        text: "The time from exec to the first answer after `kill -9`, with this many messages queued for 1,000 \
               users, this many accounts without messages, or this volume of large texts. Then messages are sent \
               and received repeatedly, and the bytes that the server writes are compared with the bytes of the \
               texts: first in new files, including the zeros that are written ahead, and then in recycled files."
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
        &[
            "messages",
            "accounts",
            "seconds",
            "store MiB",
            "resident MiB",
        ],
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

fn texts_table(records: &[Record]) -> Table {
    let mut table = Table::new(
        "Serving again after kill -9, over large texts",
        &["texts MiB", "seconds", "store MiB", "resident MiB"],
    );
    for record in records {
        let mib = |name| number(record.figure(name).map(|bytes| bytes / MIB));
        table.push(vec![
            count(record.with_what("text_mib")),
            number(record.figure("serving_after_seconds")),
            mib("store_bytes"),
            mib("resident_bytes"),
        ]);
    }
    table
}

fn recycling_table(records: &[Record]) -> Table {
    let mut table = Table::new(
        "Bytes written for each byte of text",
        &[
            "messages",
            "with zeros, in new files",
            "in files used again",
            "store MiB",
        ],
    );
    for record in records {
        table.push(vec![
            count(record.with_what("messages")),
            number(record.figure("first_written_per_text")),
            number(record.figure("recycled_written_per_text")),
            number(record.figure("store_bytes").map(|bytes| bytes / MIB)),
        ]);
    }
    table
}
