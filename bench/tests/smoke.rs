//! A short run of the benchmark against the real server: it checks the messages and writes its
//! report.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs `hark-bench` on the server of this build and the relays.
fn bench(out: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hark-bench"));
    command
        .args(arguments)
        .arg("--harkd")
        .arg(hark_tests::binary("harkd"))
        .arg("--out")
        .arg(out);
    command
        .args(["--only=harkd", "--only=relay"])
        .output()
        .unwrap()
}

/// Returns the figures and the page of a run, which must succeed.
fn measured(arguments: &[&str]) -> (Vec<Value>, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = bench(folder.path(), arguments);
    assert!(output.status.success(), "{output:?}");
    assert!(
        !folder.path().join("data").join("1").exists(),
        "a server's data stays behind"
    );
    let figures = fs::read_to_string(folder.path().join("figures.jsonl")).unwrap();
    let figures = figures
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let page = fs::read_to_string(folder.path().join("report.md")).unwrap();
    for plot in page
        .lines()
        .filter_map(|line| line.split_once("](benchmarks/"))
    {
        let file = folder.path().join(plot.1.trim_end_matches(')'));
        assert!(
            fs::read_to_string(&file).unwrap().contains("<svg"),
            "{file:?}"
        );
    }
    (figures, page)
}

/// The subjects of [`bench`].
const SUBJECTS: [&str; 4] = [
    "harkd, durable",
    "harkd, memory",
    "limit: relay",
    "limit: relay, synced file",
];

#[track_caller]
fn check_all(figures: &[Value], round: &str, check: impl Fn(&Value) -> bool) {
    for subject in SUBJECTS {
        let of_subject = |line: &&Value| line["round"] == round && line["subject"] == subject;
        let line = figures
            .iter()
            .find(of_subject)
            .unwrap_or_else(|| panic!("{subject} is not in {figures:?}"));
        assert!(check(&line["figures"]), "{line}");
    }
}

#[test]
fn online_compares_messages_and_writes_a_report() {
    // In memory: other tests may hold up the syncs of a disk for longer than a round.
    let data = tempfile::tempdir_in("/dev/shm").unwrap();
    let data_flag = format!("--data={}", data.path().display());
    let arguments = [
        "online",
        &data_flag,
        "--seconds=1",
        "--warm-up=0.05",
        "--rounds=1",
        "--shape=2x3x16",
        "--rate=200",
    ];
    let (figures, page) = measured(&arguments);
    let is_whole = |figures: &Value| {
        figures["compared"].as_f64() > Some(0.0)
            && figures["lost"] == 0.0
            && figures["repeated"] == 0.0
    };
    check_all(&figures, "online", is_whole);
    check_all(&figures, "online, paced", is_whole);
    assert!(
        page.contains("**2 senders, 3 receivers, 16 in flight each**"),
        "{page}"
    );
    assert!(page.contains("](benchmarks/latency-p50.svg)"), "{page}");
}

#[test]
fn offline_receives_every_accepted_message() {
    let (figures, _) = measured(&["offline", "--messages=3000", "--users=1", "--users=100"]);
    check_all(&figures, "offline", |figures| {
        figures["drained_per_second"].as_f64() > Some(0.0)
            && figures["lost"] == 0.0
            && figures["repeated"] == 0.0
    });
}

#[test]
fn idle_users_are_back_after_a_restart() {
    let (figures, _) = measured(&["idle", "--connections=20", "--backlog=3"]);
    check_all(&figures, "idle", |figures| {
        figures["resident_bytes"].as_f64() > Some(0.0)
    });
    let back = figures
        .iter()
        .find(|line| line["round"] == "idle, restart" && line["subject"] == SUBJECTS[0]);
    let back = &back.unwrap()["figures"];
    assert!(
        back["lost"] == 0.0 && back["all_seconds"].as_f64() > Some(0.0),
        "{back}"
    );
}

#[test]
fn killed_server_restarts_and_its_writes_are_counted() {
    let arguments = [
        "start",
        "--queued=0",
        "--queued=5000",
        "--accounts=100",
        "--texts=3",
        "--starts=1",
        "--recycled=5000",
    ];
    let (figures, page) = measured(&arguments);
    let starts: Vec<_> = figures
        .iter()
        .filter(|line| line["round"] == "start")
        .collect();
    assert_eq!(starts.len(), 3, "{figures:?}");
    assert!(
        starts
            .iter()
            .all(|line| line["figures"]["serving_after_seconds"].as_f64() > Some(0.0))
    );
    let texts = figures
        .iter()
        .find(|line| line["round"] == "start, texts")
        .unwrap();
    assert!(
        texts["figures"]["store_bytes"].as_f64() > Some(3e6),
        "{texts}"
    );
    let recycling = figures
        .iter()
        .find(|line| line["round"] == "recycling")
        .unwrap();
    assert!(
        recycling["figures"]["recycled_written_per_text"].as_f64() > Some(1.0),
        "{recycling}"
    );
    assert!(page.contains("](benchmarks/start-messages.svg)"), "{page}");
}

#[test]
fn soak_samples_the_memory_and_loses_no_message() {
    let (figures, page) = measured(&["soak", "--soak-seconds=2", "--soak-rate=500"]);
    for subject in ["harkd, durable", "harkd, memory"] {
        let of = |round| {
            figures
                .iter()
                .filter(move |line| line["round"] == round && line["subject"] == subject)
        };
        let soak = &of("soak").next().unwrap()["figures"];
        assert!(soak["lost"] == 0.0 && soak["repeated"] == 0.0, "{soak}");
        assert!(
            soak["passed"].as_f64() > Some(0.0) && soak["lists"].as_f64() > Some(0.0),
            "{soak}"
        );
        assert!(of("soak, memory").count() >= 2, "{figures:?}");
    }
    assert!(page.contains("](benchmarks/soak-memory.svg)"), "{page}");
}

#[test]
fn missing_server_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hark-bench"))
        .args(["online", "--only=harkd", "--harkd=/nowhere/harkd", "--out"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("MISSING: harkd, durable: cannot run /nowhere/harkd"),
        "{said}"
    );
}

#[test]
fn members_of_a_room_get_every_message() {
    let arguments = [
        "fanout",
        "--fanout-seconds=0.5",
        "--fanout-warm-up=0.1",
        "--fanout-rounds=1",
        "--room=30x8",
        "--speakers=2",
        "--paced-members=20",
        "--room-rate=50",
        "--last-members=20",
        "--memory-users=20",
        "--memory-rooms=2",
        "--settle=0.1",
        "--joined-messages=1000",
        "--history-messages=2000",
        "--returning=20",
        "--missed=30",
    ];
    let (figures, page) = measured(&arguments);
    let is_whole = |figures: &Value| {
        figures["delivered_per_second"].as_f64() > Some(0.0)
            && figures["lost"] == 0.0
            && figures["repeated"] == 0.0
    };
    check_all(&figures, "fanout", is_whole);
    check_all(&figures, "fanout, paced", is_whole);
    check_all(&figures, "fanout, last", |figures| {
        figures["messages"].as_f64() > Some(0.0)
    });
    let costs: Vec<_> = figures
        .iter()
        .filter(|line| line["round"] == "fanout, costs")
        .collect();
    assert_eq!(costs.len(), 4, "{figures:?}");
    assert!(page.contains("| all members back"), "{page}");
}
