//! hark-node: a Maelstrom node that does all the tasks. This file knows which
//! tasks there are, and the command line; a file for each family of tasks knows
//! what they do.

mod echo;
mod pending;
mod proxy;
mod streams;

use std::io::Write as _;
use std::process::ExitCode;

use hark_node::Node;

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

/// All tasks of the node.
fn program(node: &Node<()>) {
    echo::register(node);
    proxy::register(node);
    pending::register(node);
    streams::register(node);
}

fn main() -> ExitCode {
    let argument = std::env::args_os().nth(1);
    match argument.as_ref().map(|argument| argument.to_string_lossy()).as_deref() {
        None => hark_node::main(program),
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
