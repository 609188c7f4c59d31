//! Maelstrom's workloads by name. Their programs are the examples of the library.

use std::process::ExitCode;

use crate::tasks;

/// Includes an example as a module.
macro_rules! examples {
    ($($name:ident = $path:literal),+ $(,)?) => {
        $(
            #[path = $path]
            #[expect(dead_code, reason = "the binary has a `main` of its own")]
            mod $name;
        )+
    };
}

examples! {
    broadcast = "../../../examples/broadcast.rs",
    g_counter = "../../../examples/g_counter.rs",
    g_set = "../../../examples/g_set.rs",
    kafka = "../../../examples/kafka.rs",
    lin_kv = "../../../examples/lin_kv.rs",
    pn_counter = "../../../examples/pn_counter.rs",
    txn_list_append = "../../../examples/txn_list_append.rs",
    txn_rw_register = "../../../examples/txn_rw_register.rs",
    unique_ids = "../../../examples/unique_ids.rs",
}

/// A workload that the binary can run.
struct Workload {
    name: &'static str,
    about: &'static str,
    run: fn() -> ExitCode,
}

/// All workloads, in the order of the help.
const WORKLOADS: &[Workload] = &[
    Workload {
        name: "echo",
        about: "the request as the answer",
        run: || hark_node::main(tasks::program),
    },
    Workload {
        name: "unique-ids",
        about: "ids without coordination; totally available",
        run: || hark_node::main(unique_ids::program),
    },
    Workload {
        name: "broadcast",
        about: "all messages to all nodes, with low latency",
        run: || hark_node::main(broadcast::program),
    },
    Workload {
        name: "broadcast-thrifty",
        about: "the workload broadcast, with few messages",
        run: || hark_node::main(broadcast::thrifty),
    },
    Workload {
        name: "g-set",
        about: "a growing set; totally available",
        run: || hark_node::main(g_set::program),
    },
    Workload {
        name: "g-counter",
        about: "a growing counter over seq-kv",
        run: || hark_node::main(g_counter::program),
    },
    Workload {
        name: "pn-counter",
        about: "a counter; totally available",
        run: || hark_node::main(pn_counter::program),
    },
    Workload {
        name: "lin-kv",
        about: "linearizable registers by Raft",
        run: || hark_node::main(lin_kv::program),
    },
    Workload {
        name: "kafka",
        about: "replicated logs by Raft",
        run: || hark_node::main(kafka::program),
    },
    Workload {
        name: "txn-list-append",
        about: "strict serializable transactions by Raft",
        run: || hark_node::main(txn_list_append::program),
    },
    Workload {
        name: "txn-rw-register",
        about: "read committed transactions; totally available",
        run: || hark_node::main(txn_rw_register::program),
    },
];

/// Returns the `main` of a workload.
pub(crate) fn find(name: &str) -> Option<fn() -> ExitCode> {
    WORKLOADS
        .iter()
        .find(|workload| workload.name == name)
        .map(|workload| workload.run)
}

/// Returns the names of all workloads, separated by commas.
pub(crate) fn names() -> String {
    WORKLOADS
        .iter()
        .map(|workload| workload.name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Returns a line of the help for each workload.
pub(crate) fn help() -> String {
    WORKLOADS
        .iter()
        .map(|workload| format!("  {:<17}  {}\n", workload.name, workload.about))
        .collect()
}
