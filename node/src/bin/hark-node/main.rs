//! hark-node: a Maelstrom node that does all the tasks. This file knows the
//! command line.

mod tasks;

use std::io::Write as _;
use std::process::ExitCode;

const HELP: &str = "\
A Maelstrom node: a message a line on stdin, its answers on stdout, its log on stderr.

Usage: hark-node

It answers echo, batch_echo, proxy, relay, pending_count and send_fire_forget, and
serves the streams WatchLogs of LogWatcher and BiDiChat of Chat.

Options:
  -h, --help     Print help
  -V, --version  Print version

Environment:
  RUST_LOG  How much is logged: error, warn (the default), info, debug or trace

Example:
  echo '{\"src\":\"c1\",\"dest\":\"n1\",\"body\":{\"type\":\"init\",\"msg_id\":1,\"node_id\":\"n1\",\"node_ids\":[\"n1\"]}}' | hark-node
";

fn main() -> ExitCode {
    let argument = std::env::args_os().nth(1);
    match argument.as_ref().map(|argument| argument.to_string_lossy()).as_deref() {
        None => hark_node::main(tasks::program),
        Some("-h" | "--help") => print(HELP),
        Some("-V" | "--version") => print(concat!("hark-node ", env!("CARGO_PKG_VERSION"), "\n")),
        Some(other) => {
            eprintln!("hark-node takes no '{other}'; see hark-node --help");
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
