//! `hark-bench`: measures `harkd` beside the limits of the machine in the same
//! run, and beside other servers. docs/BENCHMARKS.md says how to use it.

mod bench;
mod load;
mod peers;
mod report;
mod rounds;
mod server;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};

use bench::Bench;
use peers::{Hark, Mosquitto, Nats, Ngircd, Peer, PythonServer, Relay, RelayArgs};
use report::{Report, machine};
use rounds::fanout::FanoutArgs;
use rounds::idle::IdleArgs;
use rounds::offline::OfflineArgs;
use rounds::online::OnlineArgs;
use rounds::soak::SoakArgs;
use rounds::start::StartArgs;

/// Measures harkd beside the limits of this machine, and beside other servers.
#[derive(Debug, Parser)]
#[command(name = "hark-bench", version, max_term_width = 100)]
struct Cli {
    /// The rounds to run.
    #[command(subcommand)]
    command: Command,
    /// Folder of the report: `report.md`, plots, and `figures.jsonl`
    /// [default: target/bench/COMMAND]
    #[arg(long, global = true)]
    out: Option<PathBuf>,
    /// The harkd to measure [default: the one beside this program]
    #[arg(long, global = true)]
    harkd: Option<PathBuf>,
    /// Measure only peers with this in their name; may be repeated
    #[arg(long, global = true, value_name = "WORDS")]
    only: Vec<String>,
    /// Folder of the servers' data, on the disk to be measured
    /// [default: the folder `data` in that of the report]
    #[arg(long, global = true)]
    data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything: harkd, the limits and the other servers
    All(Box<AllArgs>),
    /// `online`, `offline` and `idle` beside other servers
    Peers(PeersArgs),
    /// Messages between users that are online
    Online(OnlineArgs),
    /// Messages for users that are offline, and the users' return
    Offline(OfflineArgs),
    /// Idle connections, and their return after a restart
    Idle(IdleArgs),
    /// Messages to a room of many members, and the costs of rooms
    Fanout(FanoutArgs),
    /// Start times of harkd, and its writes per byte of text
    Start(StartArgs),
    /// A longer mixed load, under which memory must stay flat
    Soak(SoakArgs),
    /// The relay that hark-bench runs as a limit
    #[command(hide = true)]
    Relay(RelayArgs),
}

/// The settings of the rounds with other servers.
#[derive(Debug, clap::Args)]
struct PeersArgs {
    #[command(flatten)]
    online: OnlineArgs,
    #[command(flatten)]
    offline: OfflineArgs,
    #[command(flatten)]
    idle: IdleArgs,
}

/// The settings of all rounds.
#[derive(Debug, clap::Args)]
struct AllArgs {
    #[command(flatten)]
    peers: PeersArgs,
    #[command(flatten)]
    fanout: FanoutArgs,
    #[command(flatten)]
    start: StartArgs,
    #[command(flatten)]
    soak: SoakArgs,
}

impl AllArgs {
    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        self.peers.run(bench)?;
        self.fanout.run(bench)?;
        self.start.run(bench)?;
        self.soak.run(bench)
    }
}

impl PeersArgs {
    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        self.online.run(bench)?;
        self.offline.run(bench)?;
        self.idle.run(bench)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hark-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Command::Relay(arguments) = &cli.command {
        return peers::serve_relay(arguments);
    }
    rlimit::increase_nofile_limit(u64::MAX).context("cannot raise the limit of open files")?;
    let out = cli
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from("target/bench").join(cli.command.name()));
    let harkd = match &cli.harkd {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("harkd"),
    };
    let mut introduction = String::new();
    let mut subjects = Vec::new();
    for peer in cli.command.subjects(&harkd) {
        let name = peer.name();
        if !cli.only.is_empty() && !cli.only.iter().any(|words| name.contains(words.as_str())) {
            continue;
        }
        match peer.version() {
            Ok(version) => {
                introduction += &format!("- {name}: {version}\n");
                subjects.push(peer);
            }
            Err(error) => {
                eprintln!("MISSING: {name}: {error:#}");
                introduction += &format!("- {name}: **missing**, and not measured\n");
            }
        }
    }
    ensure!(
        !subjects.is_empty(),
        "none of the selected peers is installed"
    );
    let report = Report::begin(&out)?;
    let data = cli.data.clone().unwrap_or_else(|| out.join("data"));
    std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
    let introduction = format!(
        "Measured on {}.\n\n{introduction}",
        machine::description(&data)
    );
    let mut bench = Bench::new(subjects, report, data);
    match &cli.command {
        Command::All(arguments) => arguments.run(&mut bench)?,
        Command::Peers(arguments) => arguments.run(&mut bench)?,
        Command::Online(arguments) => arguments.run(&mut bench)?,
        Command::Offline(arguments) => arguments.run(&mut bench)?,
        Command::Idle(arguments) => arguments.run(&mut bench)?,
        Command::Fanout(arguments) => arguments.run(&mut bench)?,
        Command::Start(arguments) => arguments.run(&mut bench)?,
        Command::Soak(arguments) => arguments.run(&mut bench)?,
        Command::Relay(_) => unreachable!("a relay measures nothing"),
    }
    bench.end();
    let page = bench.report.finish(&introduction)?;
    println!("{}", std::fs::read_to_string(&page)?);
    println!("the report is {}", page.display());
    Ok(())
}

impl Command {
    const fn name(&self) -> &'static str {
        match self {
            Self::All(_) => "all",
            Self::Peers(_) => "peers",
            Self::Online(_) => "online",
            Self::Offline(_) => "offline",
            Self::Idle(_) => "idle",
            Self::Fanout(_) => "fanout",
            Self::Start(_) => "start",
            Self::Soak(_) => "soak",
            Self::Relay(_) => "relay",
        }
    }

    /// Returns the peers to measure: `harkd`, the limits, and on request the other servers.
    fn subjects(&self, harkd: &Path) -> Vec<Arc<dyn Peer>> {
        let mut subjects: Vec<Arc<dyn Peer>> = vec![
            Arc::new(Hark::durable(harkd)),
            Arc::new(Hark::memory(harkd)),
            Arc::new(Relay::BARE),
            Arc::new(Relay::LOGGED),
        ];
        if matches!(self, Self::All(_) | Self::Peers(_) | Self::Fanout(_)) {
            subjects.extend([
                Arc::new(Mosquitto) as Arc<dyn Peer>,
                Arc::new(Nats::UNSYNCED),
                Arc::new(Nats::SYNCED),
                Arc::new(Ngircd),
            ]);
        }
        if matches!(self, Self::All(_) | Self::Peers(_)) {
            subjects.push(Arc::new(PythonServer));
        }
        if matches!(self, Self::All(_) | Self::Fanout(_)) {
            subjects.push(Arc::new(Nats::CORE));
        }
        subjects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }
}
