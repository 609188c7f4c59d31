//! A check of many seeds, and its report of a failure.

use std::cell::RefCell;
use std::process::Command;

use hark_node::sim::{self, Cluster, SEED_VARIABLE};

use super::programs::{numbers, shower};

/// Lets the test below fail with seed 3; set by the test after it.
const FAIL_VARIABLE: &str = "HARK_SIM_TEST_FAILS";

#[test]
fn a_check_runs_all_seeds_or_the_one_that_is_named() {
    let seeds = RefCell::new(Vec::new());
    sim::check(0..5, |seed| {
        seeds.borrow_mut().push(seed);
        let mut cluster = Cluster::builder(numbers).nodes(2).seed(seed).build();
        let client = cluster.client();
        shower(&mut cluster, client, "n2", 30, 1);
        assert!(
            seed != 3 || std::env::var(FAIL_VARIABLE).is_err(),
            "as it was told"
        );
    });
    let named = std::env::var(SEED_VARIABLE)
        .ok()
        .map(|seed| vec![seed.parse().unwrap()]);
    assert_eq!(
        seeds.into_inner(),
        named.unwrap_or_else(|| (0..5).collect())
    );
}

/// Runs the test above in a process of its own, and returns whether it passed,
/// and its output.
fn run(variables: &[(&str, &str)]) -> (bool, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "sim::check::a_check_runs_all_seeds_or_the_one_that_is_named",
            "--nocapture",
        ])
        .env_remove(SEED_VARIABLE)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("running 1 test"), "{text}");
    (output.status.success(), text)
}

#[test]
fn a_failing_check_prints_its_seed_how_to_run_it_and_the_end_of_the_chart() {
    let (has_passed, text) = run(&[(FAIL_VARIABLE, "1")]);
    assert!(!has_passed, "{text}");
    let command =
        "HARK_SIM_SEED=3 cargo test sim::check::a_check_runs_all_seeds_or_the_one_that_is_named";
    assert!(
        text.contains(&format!("seed 3 fails; to run it alone: {command}")),
        "{text}"
    );
    assert!(text.contains("the cluster of seed 3 at 1"), "{text}");
    assert!(
        text.contains(r#"{"type": "number", "number": 29}"#),
        "{text}"
    );
    assert!(text.contains("as it was told"), "{text}");
}

#[test]
fn the_seed_that_the_variable_names_is_run_alone() {
    assert!(run(&[(FAIL_VARIABLE, "1"), (SEED_VARIABLE, "4")]).0);
    assert!(!run(&[(FAIL_VARIABLE, "1"), (SEED_VARIABLE, "3")]).0);
    let (has_passed, text) = run(&[(SEED_VARIABLE, "x")]);
    assert!(
        !has_passed && text.contains("HARK_SIM_SEED is no seed"),
        "{text}"
    );
}

#[test]
#[should_panic(expected = "a check without a seed checks nothing")]
fn a_check_without_seeds_fails() {
    sim::check([], |_| ());
}
