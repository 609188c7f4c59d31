//! The checker finds each planted mistake, and nothing without one.

use super::bugs::{Bug, fails_with};

#[path = "../../examples/lin_kv.rs"]
#[expect(dead_code, reason = "a test needs no `main`")]
mod lin_kv;
#[path = "../../tests/it/workloads/registers.rs"]
mod registers;

/// Runs that a mistake has to show itself.
const SEEDS: u64 = 300;

/// Runs seeds until one fails with the mistake, and then runs that seed without
/// it.
#[track_caller]
fn check(bug: Bug) {
    let run = |seed| {
        let mut run = registers::Run::new(|node| lin_kv::serve(node, registers::SETTINGS), seed);
        run.storm();
        run.assert_linearizable();
    };
    let found = (0..SEEDS).find(|seed| fails_with(Some(bug), || run(*seed)));
    println!("{bug:?} is found by seed {found:?}");
    assert!(found.is_some(), "no seed of {SEEDS} finds {bug:?}");
    assert!(!found.is_some_and(|seed| fails_with(None, || run(seed))), "{found:?} fails without {bug:?}");
}

#[test]
fn two_votes_in_a_term_are_found() {
    check(Bug::VotesTwice);
}

#[test]
fn a_forgotten_vote_is_found() {
    check(Bug::ForgetsVotes);
}

#[test]
fn commit_by_counting_former_terms_is_found() {
    check(Bug::CommitsFormerTerms);
}

#[test]
fn a_read_without_a_quorum_is_found() {
    check(Bug::ReadsWithoutQuorum);
}

#[test]
fn a_log_lost_in_a_crash_is_found() {
    check(Bug::ForgetsEntries);
}

#[test]
fn a_request_applied_twice_is_found() {
    check(Bug::AppliesTwice);
}
