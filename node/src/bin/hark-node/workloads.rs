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
    g_set = "../../../examples/g_set.rs",
    pn_counter = "../../../examples/pn_counter.rs",
    unique_ids = "../../../examples/unique_ids.rs",
}

/// The name of a workload, and the `main` of its node.
type Workload = (&'static str, fn() -> ExitCode);

const WORKLOADS: &[Workload] = &[
    ("broadcast", || hark_node::main(broadcast::program)),
    ("echo", || hark_node::main(tasks::program)),
    ("g-set", || hark_node::main(g_set::program)),
    ("pn-counter", || hark_node::main(pn_counter::program)),
    ("unique-ids", || hark_node::main(unique_ids::program)),
];

/// Returns the `main` of a workload.
pub(crate) fn find(name: &str) -> Option<fn() -> ExitCode> {
    WORKLOADS.iter().find(|(known, _)| *known == name).map(|(_, main)| *main)
}

/// Returns the names of all workloads, separated by commas.
pub(crate) fn names() -> String {
    WORKLOADS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
