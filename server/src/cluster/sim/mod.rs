//! A simulation of the cluster in one process: servers, their clients and the streams of
//! their shards, over a simulated network, in virtual time and from a seed.
//!
//! Each run goes through a time of faults (pauses, also of machines with their clocks,
//! partitions, lost and late requests and answers, changes of the streams' leaders,
//! crashes and restarts) and then a calm one, in which everything must come to an end.
//! A [`Judge`](judge::Judge) that is too simple to be wrong compares the answers to
//! clients with the messages of readers.
//!
//! | file | content |
//! | --- | --- |
//! | `world` | virtual time, network, order of events |
//! | `stream` | the stream of a shard, with its leader |
//! | `clients` | senders, readers, and clients that create and delete an account |
//! | `lister` | a client that creates and deletes accounts, and lists names |
//! | `faults` | faults and their times |
//! | `judge` | the promise |

mod clients;
mod faults;
mod judge;
mod lister;
pub(super) mod stream;
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use self::faults::{CLAIM_IN_DOUBT, DEAF_OWNER, LOSSY_END, Scenario};
use self::judge::Counts;
use self::world::World;
use super::bugs::{Bug, fails_with};

/// Environment variables: the only seed to run, and the number of seeds.
const SEED_VARIABLE: &str = "HARK_SIM_SEED";
const SEEDS_VARIABLE: &str = "HARK_SIM_SEEDS";

/// Seeds of the short run, and the additional ones of the long run.
const SEEDS: Range<u64> = 0..1000;
const SEEDS_LONG: Range<u64> = 1000..20_000;

/// Threads that run seeds.
const THREADS_MAX: usize = 4;

/// The number of seeds within which a planted bug must be found.
const SEEDS_OF_A_BUG: u64 = 500;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|value| value.parse().expect("a number"))
}

/// Runs the scenario of each seed on several threads. Each thread ends at its first
/// failure. Returns their counts.
fn run_seeds(seeds: Range<u64>, scenario: impl Fn(u64) -> Scenario + Sync) -> Counts {
    let count = number(SEEDS_VARIABLE).map_or(seeds.end, |count| seeds.start + count);
    let seeds = number(SEED_VARIABLE).map_or(seeds.start..count, |seed| seed..seed + 1);
    let threads =
        thread::available_parallelism().map_or(1, |threads| threads.get().min(THREADS_MAX));
    let run = |first: usize| {
        let mut sums = Counts::default();
        for seed in seeds.clone().skip(first).step_by(threads) {
            match catch_unwind(AssertUnwindSafe(|| World::new(seed).run(scenario(seed)))) {
                Ok(counts) => sums.add(&counts),
                Err(panic) => {
                    eprintln!("seed {seed} fails; run it alone with {SEED_VARIABLE}={seed}");
                    resume_unwind(panic);
                }
            }
        }
        sums
    };
    let mut sums = Counts::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn({
                    let run = &run;
                    move || run(first)
                })
            })
            .collect();
        for thread in threads {
            sums.add(&thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
    });
    println!("{sums:?}");
    sums
}

/// Checks that the simulation finds a planted bug, by a seed that passes without it.
fn check_finds(bug: Bug, scenario: impl Fn(u64) -> Scenario) {
    let run = |seed| World::new(seed).run(scenario(seed));
    let found = (0..SEEDS_OF_A_BUG).find(|seed| fails_with(bug, AssertUnwindSafe(|| run(*seed))));
    println!("{bug:?}: found by seed {found:?}");
    run(found.expect("a seed that finds it"));
}

#[test]
fn promise_is_kept_over_all_seeds() {
    run_seeds(SEEDS, Scenario::of);
}

#[test]
fn promise_is_kept_over_a_pause_of_twelve_minutes() {
    run_seeds(0..12, Scenario::long_pause);
}

#[test]
fn deleted_account_acts_at_no_lost_server() {
    let counts = run_seeds(0..75, Scenario::lapse);
    let is_one = number(SEED_VARIABLE).is_some();
    assert!(
        counts.lapses > 0 || is_one,
        "no deletion waited for a lapse"
    );
}

#[test]
fn promise_is_kept_while_shards_are_handed_over() {
    run_seeds(0..50, Scenario::join);
}

mod long {
    use super::*;

    #[test]
    fn deleted_account_acts_at_no_lost_server_over_many_seeds() {
        run_seeds(75..5000, Scenario::lapse);
    }

    #[test]
    fn promise_is_kept_over_many_hand_overs() {
        run_seeds(50..5000, Scenario::join);
    }

    #[test]
    fn promise_is_kept_over_many_seeds() {
        run_seeds(SEEDS_LONG, Scenario::of);
    }

    #[test]
    fn promise_is_kept_over_many_long_pauses() {
        run_seeds(12..500, Scenario::long_pause);
    }
}

#[test]
fn same_seed_gives_the_same_run() {
    let run = |seed| World::new(seed).run(Scenario::of(seed));
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn answer_by_an_earlier_append_is_found() {
    check_finds(Bug::AnswerByEarlierAppend, Scenario::of_kind(DEAF_OWNER));
}

#[test]
fn append_without_a_condition_is_found() {
    check_finds(Bug::NoFence, Scenario::of);
}

#[test]
fn append_that_counts_anywhere_is_found() {
    check_finds(Bug::AnySequenceCounts, Scenario::of_kind(CLAIM_IN_DOUBT));
}

#[test]
fn lost_last_delivery_is_found() {
    check_finds(Bug::LostLastDelivery, Scenario::of_kind(LOSSY_END));
}

#[test]
fn flow_that_opens_before_connections_close_is_found() {
    check_finds(Bug::FlowBeforeClose, Scenario::long_pause);
}

#[test]
fn snapshot_outside_the_fence_is_found() {
    check_finds(Bug::SnapshotOutsideFence, Scenario::of);
}

#[test]
fn cursor_freed_before_its_block_is_found() {
    check_finds(Bug::CursorBeforeBlock, Scenario::of);
}

#[test]
fn snapshot_without_uncopied_blocks_is_found() {
    check_finds(Bug::YoungNotIndexed, Scenario::of);
}

#[test]
fn snapshot_without_an_index_is_found() {
    check_finds(Bug::NoIndex, Scenario::of);
}

#[test]
fn purge_of_live_blocks_is_found() {
    check_finds(Bug::LiveBlocksPurged, Scenario::of);
}

#[test]
fn reception_of_a_former_generation_is_found() {
    check_finds(Bug::NoGenerations, Scenario::of);
}

#[test]
fn unavailable_before_later_sends_end_is_found() {
    check_finds(Bug::UnavailableAtOnce, Scenario::of);
}

#[test]
fn merged_page_beyond_an_incomplete_one_is_found() {
    check_finds(Bug::ListPastIncomplete, Scenario::of);
}

#[test]
fn lost_announcement_of_a_session_is_found() {
    check_finds(Bug::AnnouncedOnce, Scenario::of);
}

#[test]
fn forgotten_servers_of_a_former_owner_are_found() {
    check_finds(Bug::FormerServersForgotten, Scenario::lapse);
}

#[test]
fn server_that_acts_without_a_proof_is_found() {
    check_finds(Bug::NoProof, Scenario::lapse);
}

#[test]
fn server_that_lapses_too_early_is_found() {
    check_finds(Bug::ShortLinger, Scenario::lapse);
}

#[test]
fn release_with_missing_answers_is_found() {
    check_finds(Bug::MissingAnswersIgnored, Scenario::join);
}

#[test]
fn delete_before_its_confirmation_is_found() {
    check_finds(Bug::DeleteBeforeConfirmed, Scenario::of);
}
