//! The promise, under `kill -9`: what has been answered `ok` is read once, in
//! each sender's order, and what was refused is not read at all, while the
//! server is killed again and again.
//!
//! It prints its seed; `HARK_SEED` and `HARK_TEST_SECONDS` run it again, or
//! for longer.

use std::time::Duration;

use hark_tests::{Front, Harkd, PATIENCE, Promise, Roles, Trial};
use rand::RngExt as _;
use tokio::time::sleep;

const FRONTS: [Front; 4] = [Front::Native, Front::Tls, Front::Bidi, Front::Calls];
/// Messages that the queue of one user holds: few enough to be full.
const QUEUED_MAX: u64 = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_read_once_and_in_order_whatever_is_killed() {
    let mut trial = Trial::from_env();
    let mut server = Harkd::builder().arg(format!("--max-queued-messages={QUEUED_MAX}")).start();
    let roles = Roles {
        servers: vec![server.address()],
        fronts: FRONTS.to_vec(),
        patience: PATIENCE,
        end_within: PATIENCE,
    };
    let promise = Promise::begin(roles, trial.random()).await;
    let mut kills = 0;
    while !promise.may_end(trial.time) {
        sleep(Duration::from_millis(trial.random.random_range(200..1500))).await;
        server = tokio::task::block_in_place(|| server.kill_and_restart());
        kills += 1;
    }
    let kept = promise.end().await;
    println!("{kills} kills");
    assert!(kills > 0, "nothing was killed");
    assert_eq!((kept.given_up, kept.byes_missed), (0, 0), "some answer did not come");
    kept.assert_all_tried();
}
