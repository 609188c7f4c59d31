//! The throughput of `hark-node` beside a node of the crate `maelstrom-node` and
//! beside `cat`: `cargo bench -p hark-node --bench figures`.
//!
//! The other node is the package in `benches/baseline`, which is built here, as
//! no crate of the workspace may depend on it. Both nodes log errors alone: by
//! default the other one writes two lines for each message.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Instant;

use serde_json::Value;

/// Rounds of each comparison; the median is printed.
const ROUNDS: usize = 5;

const HARK_NODE: &str = env!("CARGO_BIN_EXE_hark-node");

const INIT: &str = r#"{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1","n2"]}}"#;

fn main() {
    println!("{} processors", thread::available_parallelism().unwrap());
    println!("\nechoes a second through stdin and stdout (medians of {ROUNDS} rounds in turn)");
    println!(
        "{:>9} {:>9} {:>12} {:>15} {:>7} {:>12}",
        "in flight", "messages", "hark-node", "maelstrom-node", "ratio", "cat"
    );
    let baseline = build_baseline();
    for (in_flight, count) in [(Some(1), 20_000), (Some(64), 100_000), (None, 200_000)] {
        let lines = Lines::new(count);
        let (mut ours, mut theirs, mut cat) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(rate(Path::new(HARK_NODE), &lines, in_flight, check_echo));
            theirs.push(rate(&baseline, &lines, in_flight, check_echo));
            cat.push(rate(Path::new("cat"), &lines, in_flight, |output| {
                assert!(output == lines.text)
            }));
        }
        let in_flight = in_flight.map_or("all".into(), |in_flight: usize| in_flight.to_string());
        let (ours, theirs, cat) = (median(ours), median(theirs), median(cat));
        println!(
            "{in_flight:>9} {count:>9} {ours:>12.0} {theirs:>15.0} {:>7.1} {cat:>12.0}",
            ours / theirs
        );
    }
}

/// Builds the other node. Its dependencies are fetched the first time.
fn build_baseline() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/baseline/Cargo.toml");
    let target = Path::new(HARK_NODE)
        .ancestors()
        .nth(2)
        .unwrap()
        .join("baseline");
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--manifest-path",
        ])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target)
        .status();
    assert!(
        status.expect("cargo").success(),
        "the node to compare with does not build"
    );
    target.join("release/baseline")
}

/// The requests, one a line, as Maelstrom's echo workload sends them.
struct Lines {
    text: Vec<u8>,
    /// The end of each line in the text.
    ends: Vec<usize>,
}

impl Lines {
    fn new(count: usize) -> Self {
        let (mut text, mut ends) = (Vec::new(), Vec::new());
        for id in 1..=count {
            let body = format!(
                r#"{{"echo":"Please echo {}","type":"echo","msg_id":{id}}}"#,
                id % 128
            );
            writeln!(
                text,
                r#"{{"id":{id},"src":"c1","dest":"n1","body":{body}}}"#
            )
            .unwrap();
            ends.push(text.len());
        }
        Self { text, ends }
    }

    /// Returns the lines from one number to another.
    fn range(&self, from: usize, to: usize) -> &[u8] {
        let end_of = |count: usize| count.checked_sub(1).map_or(0, |last| self.ends[last]);
        &self.text[end_of(from)..end_of(to)]
    }
}

/// Measures the answers a second with this number of requests in flight.
fn rate(program: &Path, lines: &Lines, in_flight: Option<usize>, check: impl Fn(&[u8])) -> f64 {
    let mut node = Process::start(program);
    let mut output = Vec::with_capacity(2 * lines.text.len());
    let start = Instant::now();
    match in_flight {
        Some(in_flight) => node.keep_in_flight(lines, in_flight, &mut output),
        None => node.pipe(lines, &mut output),
    }
    let rate = lines.ends.len() as f64 / start.elapsed().as_secs_f64();
    node.finish();
    check(&output);
    rate
}

/// Checks that each request has its own answer, in any order.
fn check_echo(output: &[u8]) {
    let answers: Vec<Value> = serde_json::Deserializer::from_slice(output)
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("answers in JSON");
    let mut ids: Vec<u64> = answers.iter().map(answered).collect();
    ids.sort_unstable();
    assert!(
        ids.iter().copied().eq(1..=answers.len() as u64),
        "an answer is missing or came twice"
    );
}

/// Returns the request of an answer, which has to be right.
fn answered(answer: &Value) -> u64 {
    let body = &answer["body"];
    let id = body["in_reply_to"].as_u64().unwrap();
    let is_right = answer["src"] == "n1"
        && answer["dest"] == "c1"
        && body["type"] == "echo_ok"
        && body["echo"] == format!("Please echo {}", id % 128);
    assert!(is_right, "a wrong answer: {answer}");
    id
}

/// A node that has its name, or `cat` in its place.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(program: &Path) -> Self {
        let mut child = Command::new(program)
            .env("RUST_LOG", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::with_capacity(64 * 1024, child.stdout.take().unwrap());
        let mut process = Self {
            child,
            stdin,
            stdout,
        };
        let answer = process.ask(INIT);
        assert!(answer.contains("init"), "{answer}");
        process
    }

    /// Sends one line and reads one.
    fn ask(&mut self, line: &str) -> String {
        self.stdin
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).unwrap();
        answer
    }

    /// Sends requests, of which at most this number is unanswered.
    fn keep_in_flight(&mut self, lines: &Lines, in_flight: usize, output: &mut Vec<u8>) {
        let (mut sent, mut answered) = (0, 0);
        while answered < lines.ends.len() {
            let to = lines.ends.len().min(answered + in_flight);
            self.stdin.write_all(lines.range(sent, to)).unwrap();
            sent = to;
            answered += read_lines(&mut self.stdout, output);
        }
    }

    /// Sends all requests at once, as far as the pipes allow.
    fn pipe(&mut self, lines: &Lines, output: &mut Vec<u8>) {
        thread::scope(|scope| {
            scope.spawn(|| self.stdin.write_all(&lines.text).unwrap());
            let mut answered = 0;
            while answered < lines.ends.len() {
                answered += read_lines(&mut self.stdout, output);
            }
        });
    }

    fn finish(mut self) {
        drop(self.stdin);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "more than was asked for");
        assert!(self.child.wait().unwrap().success());
    }
}

/// Reads at least one byte, and returns the number of line ends.
fn read_lines(stdout: &mut BufReader<ChildStdout>, output: &mut Vec<u8>) -> usize {
    let fresh = stdout.fill_buf().unwrap();
    assert!(!fresh.is_empty(), "the node has ended");
    output.extend_from_slice(fresh);
    let (bytes, lines) = (
        fresh.len(),
        fresh.iter().filter(|byte| **byte == b'\n').count(),
    );
    stdout.consume(bytes);
    lines
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
