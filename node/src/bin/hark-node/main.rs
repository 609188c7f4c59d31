//! hark-node: a Maelstrom node for all tasks and workloads. This file owns the
//! command line.

mod tasks;
mod workloads;

use std::io::Write as _;
use std::process::ExitCode;

/// Jemalloc returns the memory of a burst to the system on a background thread,
/// within ten seconds, and the last 4 MiB within twenty. The system's allocator keeps all pages below the highest
/// small block that it holds.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const HELP: &str = "\
A Maelstrom node: one message a line on stdin, answers on stdout, a log on stderr.

Usage: hark-node
       hark-node workload NAME

Without arguments it answers echo, batch_echo, proxy, relay, pending_count and
send_fire_forget, and serves the streams WatchLogs of LogWatcher and BiDiChat of Chat.

Options:
  -h, --help     Print help
  -V, --version  Print version

Environment:
  RUST_LOG  The level of the log: error, warn (the default), info, debug or trace

Examples:
  echo '{\"src\":\"c1\",\"dest\":\"n1\",\"body\":{\"type\":\"init\",\"msg_id\":1,\"node_id\":\"n1\",\"node_ids\":[\"n1\"]}}' | hark-node
  maelstrom test -w g-set --bin hark-node --node-count 5 --time-limit 20 -- workload g-set
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match &*arguments.iter().map(String::as_str).collect::<Vec<_>>() {
        [] => hark_node::main(tasks::program),
        ["-h" | "--help", ..] => print(&format!("{HELP}\nWorkloads:\n{}", workloads::help())),
        ["-V" | "--version", ..] => print(concat!("hark-node ", env!("CARGO_PKG_VERSION"), "\n")),
        ["workload", name] => match workloads::find(name) {
            Some(main) => main(),
            None => refuse(&format!(
                "no workload '{name}'; there are {}",
                workloads::names()
            )),
        },
        ["workload"] => refuse(&format!(
            "a workload is missing; there are {}",
            workloads::names()
        )),
        ["workload", _, other, ..] | [other, ..] => refuse(&format!(
            "unexpected argument '{other}'; see hark-node --help"
        )),
    }
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("hark-node: {why}");
    ExitCode::from(2)
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
