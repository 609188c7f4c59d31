//! The checkers find each planted bug, and nothing without one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Settings;
use super::bugs::{Bug, fails_with};
use crate::sim::{Client, Cluster, Event, Invocation, is_linearizable};

#[path = "../../examples/lin_kv.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod lin_kv;
#[path = "../../tests/it/workloads/registers.rs"]
#[expect(dead_code, reason = "the tests of the workload use all of it")]
mod registers;

/// Runs within which a bug must show.
const SEEDS: u64 = 100;

/// Runs seeds until one fails with the bug, and then runs that seed without it. The
/// search begins at a seed that has found the bug, so that most often no other runs.
#[track_caller]
fn check(bug: Bug, first: u64, run: fn(u64)) {
    let mut seeds = first..first + SEEDS;
    let found = seeds.find(|seed| fails_with(Some(bug), || run(*seed)));
    println!("{bug:?} is found by seed {found:?}");
    assert!(found.is_some(), "no seed of {SEEDS} finds {bug:?}");
    assert!(
        !found.is_some_and(|seed| fails_with(None, || run(seed))),
        "{found:?} fails without {bug:?}"
    );
}

fn storm(seed: u64) {
    let mut run = registers::Run::new(|node| lin_kv::serve(node, registers::SETTINGS), seed);
    run.storm();
    assert_one_leader(&run.cluster);
    run.assert_linearizable();
}

/// Only one node of each term sends entries.
#[track_caller]
fn assert_one_leader(cluster: &Cluster) {
    let journal = cluster.journal().to_string();
    let mut leaders = BTreeMap::new();
    for line in journal.lines() {
        let Some((head, body)) = line.split_once(r#" {"type": "raft_append", "term": "#) else {
            continue;
        };
        let leader = head.split_whitespace().rev().nth(2).unwrap();
        let term: u64 = body.split(',').next().unwrap().parse().unwrap();
        let before = *leaders.entry(term).or_insert(leader);
        assert_eq!(before, leader, "two leaders in term {term}");
    }
    assert!(!leaders.is_empty(), "no leader in the whole run");
}

#[test]
fn two_votes_in_a_term_are_found() {
    check(Bug::VotesTwice, 14, storm);
}

#[test]
fn a_read_without_a_quorum_is_found() {
    check(Bug::ReadsWithoutQuorum, 2, deposed_leader);
}

#[test]
fn a_log_lost_in_a_crash_is_found() {
    check(Bug::ForgetsEntries, 26, storm);
}

#[test]
fn a_request_applied_twice_is_found() {
    check(Bug::AppliesTwice, 10, storm);
}

#[test]
fn commit_by_counting_former_terms_is_found() {
    check(Bug::CommitsFormerTerms, 0, former_term);
}

/// A leader that is cut off is asked for a value after another leader has
/// changed it.
fn deposed_leader(seed: u64) {
    let mut cluster = Cluster::builder(|node| lin_kv::serve(node, registers::SETTINGS))
        .nodes(3)
        .seed(seed)
        .build();
    let client = cluster.client();
    cluster
        .call::<()>(client, "n1", "write", &json!({"key": 0, "value": 0}))
        .unwrap();
    let first = leader(&cluster);
    cluster.apply(Event::isolate(first.clone()));
    let other = cluster
        .node_ids()
        .into_iter()
        .find(|node| *node != first)
        .unwrap();
    let write = cluster.call::<()>(client, &other, "write", &json!({"key": 0, "value": 1}));
    let read = cluster.call::<Value>(client, &first, "read", &json!({"key": 0}));
    if let (Ok(()), Ok(value)) = (write, read) {
        assert_eq!(value["value"], 1, "a stale read");
    }
}

/// The schedule of figure 8 of the paper: an entry is copied to a majority by a
/// leader of a later term, and then replaced. With some seeds an election takes
/// too long for it.
fn former_term(seed: u64) {
    let mut run = FormerTerm::new(seed);
    let began = run.cluster.now();
    let (client, second) = (run.client, run.second.clone());
    let write = run
        .cluster
        .send(client, &second, "write", &json!({"key": 0, "value": 1}));
    if !run.copy_to_second() {
        return;
    }
    let Some(third) = run.begin_term_alone() else {
        return;
    };
    if !run.copy_to_majority(&third) {
        return;
    }
    let ended = run.cluster.span(write).unwrap().1;
    run.replace(&third);
    let read_at = run.cluster.now();
    let value: Value = run
        .cluster
        .call(client, &third, "read", &json!({"key": 0}))
        .unwrap();
    let history = [
        Invocation {
            began,
            ended,
            operation: None,
        },
        Invocation {
            began: read_at,
            ended: Some(run.cluster.now()),
            operation: value["value"].as_u64(),
        },
    ];
    let step = |value: &u64, read: &Option<u64>| match read {
        None => Some(1),
        Some(read) => (read == value).then_some(*value),
    };
    assert!(
        is_linearizable(0, &history, step),
        "the write is gone: {history:?}"
    );
}

/// Five nodes, of which each step lets some reach each other.
struct FormerTerm {
    cluster: Cluster,
    client: Client,
    /// The first leader.
    first: String,
    /// The only other node that gets its entry at first.
    second: String,
    others: Vec<String>,
    /// The index of the entry.
    index: u64,
}

impl FormerTerm {
    fn new(seed: u64) -> Self {
        let settings = Settings {
            heartbeat: Duration::from_millis(50),
            election_timeout: Duration::from_millis(200),
            batch_max: 1,
            ..Settings::default()
        };
        let mut cluster = Cluster::builder(move |node| lin_kv::serve(node, settings))
            .nodes(5)
            .seed(seed)
            .build();
        let client = cluster.client();
        cluster
            .call::<()>(client, "n1", "write", &json!({"key": 0, "value": 0}))
            .unwrap();
        cluster.run_for(Duration::from_millis(200));
        let first = leader(&cluster);
        let mut others = cluster.node_ids();
        others.retain(|node| *node != first);
        let second = others.remove(0);
        let mut run = Self {
            cluster,
            client,
            first,
            second,
            others,
            index: 0,
        };
        run.index = last_entry(&run.cluster, &run.second) + 1;
        run
    }

    fn split(&mut self, one: &[&str]) {
        let ids = self.cluster.node_ids();
        let rest: Vec<_> = ids
            .iter()
            .map(String::as_str)
            .filter(|id| !one.contains(id))
            .collect();
        self.cluster.apply(Event::Heal);
        self.cluster.apply(Event::partition(&[one, &rest]));
    }

    /// Waits until one of the nodes has the entry, or another one in its place.
    fn until_entry(&mut self, nodes: &[String]) -> bool {
        let index = self.index;
        let has_entry =
            |cluster: &Cluster| nodes.iter().any(|node| last_entry(cluster, node) >= index);
        self.cluster.run_until(Duration::from_secs(2), has_entry)
    }

    /// The first leader copies the entry to one node, and crashes.
    fn copy_to_second(&mut self) -> bool {
        let (first, second) = (self.first.clone(), self.second.clone());
        self.split(&[&first, &second]);
        let is_copied = self.until_entry(&[second]);
        self.cluster.apply(Event::crash(first));
        is_copied
    }

    /// Another node begins a term, and crashes before any other knows its entry.
    fn begin_term_alone(&mut self) -> Option<String> {
        let others = self.others.clone();
        self.until_entry(&others);
        let third = others
            .into_iter()
            .find(|node| last_entry(&self.cluster, node) >= self.index)?;
        self.cluster.apply(Event::isolate(third.clone()));
        self.cluster.apply(Event::crash(third.clone()));
        // Its messages that are under way are lost at the cut links.
        self.cluster.run_for(Duration::from_millis(20));
        Some(third)
    }

    /// The first or second node leads a later term, and copies the old entry to
    /// a third one. Its own entry comes to none but the first two.
    fn copy_to_majority(&mut self, third: &str) -> bool {
        self.cluster.apply(Event::Heal);
        self.cluster.apply(Event::restart(self.first.clone()));
        let mut rest = self.others.clone();
        rest.retain(|node| node != third);
        let is_copied = self.until_entry(&rest);
        let both = [self.first.clone(), self.second.clone()];
        self.cluster.apply(Event::Block(both.to_vec(), rest));
        self.cluster.run_for(Duration::from_millis(600));
        is_copied
    }

    /// The node that was alone in its term leads again, and replaces the entry.
    fn replace(&mut self, third: &str) {
        let (first, second) = (self.first.clone(), self.second.clone());
        self.split(&[&first, &second]);
        self.cluster.apply(Event::restart(third));
        self.cluster.run_for(Duration::from_secs(2));
    }
}

/// Returns the node with the most votes in the latest term.
fn leader(cluster: &Cluster) -> String {
    let ids = cluster.node_ids();
    let ballots = ids
        .iter()
        .filter_map(|id| cluster.storage(id).get::<Value>("raft/ballot").unwrap());
    let ballots: Vec<_> = ballots
        .map(|ballot| (ballot["term"].as_u64(), ballot["vote"].clone()))
        .collect();
    let latest = ballots.iter().max_by_key(|ballot| ballot.0).unwrap().0;
    let votes = |id: &&String| {
        ballots
            .iter()
            .filter(|(term, vote)| *term == latest && vote == id.as_str())
            .count()
    };
    ids.iter().max_by_key(votes).unwrap().clone()
}

/// Returns the index of a node's last entry.
fn last_entry(cluster: &Cluster, node: &str) -> u64 {
    let entries = cluster.storage(node).scan::<Value>("raft/entry/").unwrap();
    entries.last().map_or(0, |(key, _)| {
        key.trim_start_matches("raft/entry/").parse().unwrap()
    })
}
