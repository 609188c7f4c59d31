//! Maelstrom's workloads by name. The programs are the examples.

#![expect(dead_code, reason = "the binary needs no `main` of an example")]

#[path = "../../../examples/broadcast.rs"]
mod broadcast;
#[path = "../../../examples/g_counter.rs"]
mod g_counter;
#[path = "../../../examples/g_set.rs"]
mod g_set;
#[path = "../../../examples/kafka.rs"]
mod kafka;
#[path = "../../../examples/lin_kv.rs"]
mod lin_kv;
#[path = "../../../examples/pn_counter.rs"]
mod pn_counter;
#[path = "../../../examples/txn_list_append.rs"]
mod txn_list_append;
#[path = "../../../examples/txn_rw_register.rs"]
mod txn_rw_register;
#[path = "../../../examples/unique_ids.rs"]
mod unique_ids;

use std::process::ExitCode;

use super::tasks;

/// A workload that the binary can run.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn() -> ExitCode,
}

/// All workloads, in the order of the help.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload { name: "echo", about: "the request as the answer", run: || hark_node::main(tasks::program) },
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
    Workload { name: "kafka", about: "replicated logs by Raft", run: || hark_node::main(kafka::program) },
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

/// Returns the workload of this name.
pub(crate) fn find(name: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|workload| workload.name == name)
}
