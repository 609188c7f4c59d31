//! The promise under `kill -9`: every send answered `ok` is read once and in
//! each sender's order, and no refused one, while the server is killed again
//! and again.
//!
//! Each run prints its seed. `HARK_SEED` repeats it, and `HARK_TEST_SECONDS`
//! sets its duration.

use std::time::{Duration, Instant};

use hark_tests::{Front, Harkd, LoadConfig, Promise, RoomPromise, TIMEOUT, Trial};
use rand::RngExt as _;
use tokio::time::sleep;

const FRONTS: [Front; 5] = [
    Front::Native,
    Front::Tls,
    Front::WebSocket,
    Front::Bidi,
    Front::Calls,
];
/// Capacity of an inbox in messages, small enough to be exceeded.
const QUEUED_MAX: u64 = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_holds_under_kill_9() {
    let mut trial = Trial::from_env();
    let mut server = Harkd::builder()
        .arg(format!("--max-queued-messages={QUEUED_MAX}"))
        .start();
    let config = LoadConfig {
        servers: vec![server.address()],
        fronts: FRONTS.to_vec(),
        answer_timeout: TIMEOUT,
        pace: Duration::ZERO,
        end_within: TIMEOUT,
    };
    let promise = Promise::begin(config, trial.random()).await;
    let mut kills = 0;
    while !promise.may_end(trial.time) {
        sleep(Duration::from_millis(trial.random.random_range(200..1500))).await;
        server = tokio::task::block_in_place(|| server.kill_and_restart());
        kills += 1;
    }
    let report = promise.end().await;
    println!("{kills} kills");
    assert!(kills > 0, "nothing was killed");
    assert_eq!(
        (report.timed_out, report.byes_missed),
        (0, 0),
        "some answer did not come"
    );
    report.assert_all_tried();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_keep_the_promise_under_kill_9() {
    let mut trial = Trial::from_env();
    let mut server = Harkd::builder().start();
    let promise = RoomPromise::begin(server.address(), trial.random()).await;
    let begun = Instant::now();
    let mut kills = 0;
    while begun.elapsed() < trial.time || kills < 2 {
        sleep(Duration::from_millis(trial.random.random_range(200..1200))).await;
        server = tokio::task::block_in_place(|| server.kill_and_restart());
        kills += 1;
    }
    let report = promise.end().await;
    println!("{kills} kills, {report:?}");
    assert!(report.compared >= 3 * report.stored && report.stored > 0);
    assert!(report.stays > 0, "no membership ended");
}
