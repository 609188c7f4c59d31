//! hark-node: a Maelstrom node for all tasks and workloads. This file knows the
//! command line.

mod tasks;
mod workloads;

use std::io::Write as _;
use std::process::ExitCode;

const HELP: &str = "\
A Maelstrom node: a message a line on stdin, its answers on stdout, its log on stderr.

Usage: hark-node
       hark-node workload NAME

Without a workload it answers echo, batch_echo, proxy, relay, pending_count and
send_fire_forget, and serves the streams WatchLogs of LogWatcher and BiDiChat of Chat.

Options:
  -h, --help     Print help
  -V, --version  Print version

Environment:
  RUST_LOG  How much is logged: error, warn (the default), info, debug or trace

Examples:
  echo '{\"src\":\"c1\",\"dest\":\"n1\",\"body\":{\"type\":\"init\",\"msg_id\":1,\"node_id\":\"n1\",\"node_ids\":[\"n1\"]}}' | hark-node
  maelstrom test -w lin-kv --bin hark-node --nemesis partition -- workload lin-kv

Workloads:
";

fn main() -> ExitCode {
    let arguments: Vec<_> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => hark_node::main(tasks::program),
        ["-h" | "--help"] => print(&help()),
        ["-V" | "--version"] => print(concat!("hark-node ", env!("CARGO_PKG_VERSION"), "\n")),
        ["workload", name] => match workloads::find(name) {
            Some(workload) => (workload.run)(),
            None => refuse(&format!("there is no workload '{name}'")),
        },
        ["workload"] => refuse("workload takes a name"),
        others => refuse(&format!("hark-node takes no '{}'", others.join(" "))),
    }
}

fn help() -> String {
    let line = |workload: &workloads::Workload| format!("  {:<17}  {}\n", workload.name, workload.about);
    HELP.to_owned() + &workloads::WORKLOADS.iter().map(line).collect::<String>()
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("{why}; see hark-node --help");
    ExitCode::from(2)
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
