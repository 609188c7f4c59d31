//! A cluster with all faults that a workload has to survive, under load, and then
//! without faults until it has converged.

use std::collections::BTreeSet;
use std::time::Duration;

use hark_node::sim::{Client, Cluster, Event, Latency, Operation};
use hark_node::{Json, Node};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The number of nodes.
const NODES: usize = 5;

/// The number of requests during the faults, and the pause between them.
const REQUESTS: i64 = 300;
const PAUSE: Duration = Duration::from_millis(100);

/// The time between the last operation and the final reads, as in the harness.
pub(crate) const QUIET: Duration = Duration::from_secs(10);

pub(crate) struct Storm {
    pub(crate) cluster: Cluster,
    client: Client,
}

impl Storm {
    /// Messages are lost, doubled and reordered; twice the nodes are split, and
    /// twice one crashes, with time to recover in between.
    pub(crate) fn new<S: Default + 'static>(
        program: impl Fn(&Node<S>) + 'static,
        seed: u64,
    ) -> Self {
        let mut cluster = Cluster::builder(program)
            .nodes(NODES)
            .seed(seed)
            .latency(Latency::Exponential(Duration::from_millis(10)))
            .loss(0.1)
            .duplication(0.05)
            .reordering(0.2)
            .build();
        let client = cluster.client();
        let seconds = Duration::from_secs;
        for (begin, end) in [(2, 6), (17, 21)] {
            cluster.at(seconds(begin), Event::Split);
            cluster.at(seconds(end), Event::Heal);
        }
        for (crash, restart) in [(11, 12), (26, 27)] {
            let node = format!("n{}", cluster.random() % 5 + 1);
            cluster.at(seconds(crash), Event::crash(node.clone()));
            cluster.at(seconds(restart), Event::restart(node));
        }
        Self { cluster, client }
    }

    /// Sends requests to random nodes, from before the first fault to after the
    /// last, and waits until the nodes have converged. Requests are numbered from
    /// 0.
    pub(crate) fn ask(&mut self, request: impl Fn(i64) -> (&'static str, Value)) -> Vec<Operation> {
        let operations = (0..REQUESTS)
            .map(|number| {
                let node = format!("n{}", self.cluster.random() % 5 + 1);
                let (kind, fields) = request(number);
                let operation = self.cluster.send(self.client, &node, kind, &fields);
                self.cluster.run_for(PAUSE);
                operation
            })
            .collect();
        self.cluster.apply(Event::Calm);
        self.cluster.run_for(QUIET);
        operations
    }

    /// Returns the reply to a request, if it was not an error.
    pub(crate) fn end<R: DeserializeOwned>(&self, operation: Operation) -> Option<R> {
        self.cluster.poll(operation).and_then(Result::ok)
    }

    /// Returns the numbers of the answered requests, more than half of all.
    pub(crate) fn answered(&self, operations: &[Operation]) -> BTreeSet<i64> {
        let answered: BTreeSet<i64> = (0..)
            .zip(operations)
            .filter(|(_, operation)| self.end::<Json>(**operation).is_some())
            .map(|(number, _)| number)
            .collect();
        assert!(
            answered.len() > operations.len() / 2,
            "only {} of {} were answered",
            answered.len(),
            operations.len()
        );
        answered
    }

    /// Reads the whole state of a node.
    pub(crate) fn read<R: DeserializeOwned>(&mut self, node: &str) -> R {
        self.cluster
            .call(self.client, node, "read", &json!({}))
            .unwrap_or_else(|error| panic!("{node}: {error}"))
    }
}
