//! hark-workload: a server of a Hark cluster as a Maelstrom node. This file owns the command
//! line.

use std::io::Write as _;
use std::process::ExitCode;

use hark_server::cluster::maelstrom;

const HELP: &str = "\
A server of a Hark cluster as a Maelstrom node: its ledgers and replicated logs, with
Maelstrom's network between servers, and lin-kv as the log.

Usage: hark-workload NAME

Workloads:
  kafka  logs are inboxes, and offsets are numbers of messages
  queue  create, send and receive, for sessions and readers that acknowledge

Options:
  -h, --help     Print help
  -V, --version  Print version

Environment:
  RUST_LOG  The level of the log: error, warn (the default), info, debug or trace

Example:
  maelstrom test -w kafka --bin hark-workload --node-count 3 --time-limit 20 -- kafka
";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy())
        .collect();
    match &*arguments.iter().map(AsRef::as_ref).collect::<Vec<_>>() {
        ["kafka"] => maelstrom::kafka(),
        ["queue"] => maelstrom::queue(),
        ["-h" | "--help", ..] => print(HELP),
        ["-V" | "--version", ..] => {
            print(concat!("hark-workload ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        _ => {
            eprintln!("hark-workload: one workload, kafka or queue; see hark-workload --help");
            ExitCode::from(2)
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
