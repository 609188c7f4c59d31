//! The promise on a damaged disk: every file of a store filled by the real
//! server is flipped, truncated, removed or made unreadable, one after another.
//! The server then either refuses to start with one line about the damage, or
//! has all answered messages, or withholds the damaged inbox until `harkd
//! check` has dropped the damage. It never panics, and never starts with silent
//! data loss.
//!
//! Each run prints its seed. `HARK_SEED` repeats it, and `HARK_TEST_SECONDS`
//! allows more damages: the representative ones first, then all others.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hark_protocol::{Code, Failure, Reply, Request};
use hark_tests::{Harkd, HarkdBuilder, Refusal, Trial, Wire, harkd, name, send};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tempfile::TempDir;
use tokio::time::timeout;

const SECRET: &str = "correct horse";
const SESSION: &str = "a-session";
/// Silence after which no further message is expected.
const SILENCE: Duration = Duration::from_secs(1);
/// Number of messages sent to bob, most of them before a restart.
const QUEUED: u32 = 300;
/// Number of those that are acknowledged.
const ACKNOWLEDGED: u32 = 100;
fn text(n: u32) -> String {
    format!("{n}:{}", "x".repeat(1000))
}

fn builder(store: &Path) -> HarkdBuilder {
    Harkd::builder().store(store)
}

fn with_password(user: &str, password: &str) -> Request {
    Request::Login {
        user: name(user),
        password: Some(password.parse().unwrap()),
    }
}

/// Fills a store so that it has several segments with live content, and stops
/// the server.
async fn fill(home: &Path, is_clean: bool) {
    let server = builder(home).start();
    let mut wire = Wire::hello(server.address(), SESSION).await;
    wire.create("bob").await;
    wire.create("sink").await;
    wire.ok(Request::Create {
        user: name("eve"),
        password: Some(SECRET.parse().unwrap()),
    })
    .await;
    for n in 1..=QUEUED - 50 {
        send_as(&mut wire, n).await;
    }
    drop(wire);
    let mut server = server.kill_and_restart();
    let mut wire = Wire::hello(server.address(), SESSION).await;
    let mut reader = Wire::connect(server.address()).await;
    reader.receive("bob").await;
    for n in 1..=ACKNOWLEDGED {
        let message = reader.message().await;
        assert_eq!(message.text, text(n));
        if n == ACKNOWLEDGED {
            reader.ack(message.sequence).await;
        }
    }
    for n in QUEUED - 49..=QUEUED {
        send_as(&mut wire, n).await;
    }
    // A damaged last frame cannot be distinguished from a torn one.
    wire.sent("sink", "the last").await;
    drop((wire, reader));
    if is_clean {
        server.signal("TERM");
        assert!(server.wait().success());
    } else {
        server.kill();
    }
}

async fn send_as(wire: &mut Wire, id: u32) {
    wire.write(id, send("bob", &text(id))).await;
    assert!(matches!(wire.reply_to(id).await, Reply::Ok(_)));
}

/// A store that is copied for each damage.
struct Template {
    _home: TempDir,
    folders: Vec<PathBuf>,
    files: Vec<(PathBuf, Content)>,
}

/// The content of a file, without trailing zeros.
struct Content {
    bytes: Vec<u8>,
    length: u64,
}

impl Template {
    async fn new(is_clean: bool) -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = home.path().join("store");
        fill(&store, is_clean).await;
        let mut template = Self {
            _home: home,
            folders: Vec::new(),
            files: Vec::new(),
        };
        template.add(&store, Path::new(""));
        template
    }

    fn add(&mut self, store: &Path, inside: &Path) {
        self.folders.push(inside.to_owned());
        for entry in fs::read_dir(store.join(inside)).unwrap() {
            let path = inside.join(entry.unwrap().file_name());
            if store.join(&path).is_dir() {
                self.add(store, &path);
            } else if store.join(&path).is_file() {
                let length = fs::metadata(store.join(&path)).unwrap().len();
                let bytes = used_part(&store.join(&path));
                self.files.push((path, Content { bytes, length }));
            }
        }
    }

    /// Writes a copy to a new folder.
    fn write(&self) -> TempDir {
        let home = tempfile::tempdir().unwrap();
        for folder in &self.folders {
            fs::create_dir_all(home.path().join("store").join(folder)).unwrap();
        }
        for (path, content) in &self.files {
            let mut file = File::create(home.path().join("store").join(path)).unwrap();
            file.write_all(&content.bytes).unwrap();
            file.set_len(content.length).unwrap();
        }
        home
    }

    /// Returns every possible damage, at random places.
    fn damages(&self, random: &mut StdRng) -> Vec<Damage> {
        let mut damages = Vec::new();
        let mut add = |path: &Path, how| {
            damages.push(Damage {
                path: path.to_owned(),
                how,
            })
        };
        for (path, content) in &self.files {
            let length = content.bytes.len();
            for how in [
                How::Gone,
                How::Folder,
                How::Forbidden,
                How::Longer,
                How::Cut(0),
            ] {
                add(path, how);
            }
            for range in [
                0..length.min(16),
                0..length,
                length.saturating_sub(24)..length,
            ] {
                if !range.is_empty() {
                    add(
                        path,
                        How::Flipped {
                            at: random.random_range(range),
                            bit: random.random_range(0..8),
                        },
                    );
                }
            }
            add(path, How::Cut(length / 2));
            add(path, How::Cut(length.saturating_sub(1)));
        }
        for folder in &self.folders {
            add(folder, How::Forbidden);
            if !folder.as_os_str().is_empty() {
                add(folder, How::Gone);
                add(folder, How::File);
            }
        }
        damages
    }

    /// Returns the segment with the messages, which the last start has copied
    /// into one segment.
    fn newest_segment(&self) -> Option<&Path> {
        let segments = self
            .files
            .iter()
            .filter(|(_, content)| content.bytes.starts_with(b"harkseg"));
        segments
            .max_by_key(|(_, content)| content.bytes.len())
            .map(|(path, _)| &**path)
    }

    /// Returns one damage of each kind to each kind of file, and damage to a
    /// text.
    fn representative(&self, random: &mut StdRng) -> Vec<Damage> {
        let mut damages = self.damages(random);
        damages.shuffle(random);
        let mut kinds = BTreeSet::new();
        damages.retain(|damage| kinds.insert(damage.kind(self)));
        damages.extend(self.text_damage(random.random_range(ACKNOWLEDGED + 1..QUEUED - 50)));
        damages
    }

    /// Returns a flipped bit in this text, in its file.
    fn text_damage(&self, n: u32) -> Option<Damage> {
        let begin = format!("{n}:xxxx");
        let location = |bytes: &[u8]| {
            bytes
                .windows(begin.len())
                .position(|part| part == begin.as_bytes())
        };
        let mut places = self
            .files
            .iter()
            .filter_map(|(path, content)| Some((path, location(&content.bytes)?)));
        places
            .find(|(path, _)| self.newest_segment() == Some(path))
            .map(|(path, at)| Damage {
                path: path.clone(),
                how: How::Flipped { at, bit: 0 },
            })
    }
}

/// Reads a file without trailing zeros: a segment is far longer than its
/// frames.
fn used_part(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    while bytes.len() > 4096 && bytes.ends_with(&[0; 4096]) {
        bytes.truncate(bytes.len() - 4096);
    }
    bytes
}

#[derive(Debug, Clone)]
struct Damage {
    path: PathBuf,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Flipped { at: usize, bit: u32 },
    Cut(usize),
    Longer,
    Gone,
    Folder,
    File,
    Forbidden,
}

impl Damage {
    fn inflict(&self, store: &Path) {
        let path = store.join(&self.path);
        match self.how {
            How::Flipped { at, bit } => flip(&path, at, bit),
            How::Cut(length) => writable(&path).set_len(length as u64).unwrap(),
            How::Longer => {
                OpenOptions::new()
                    .append(true)
                    .open(&path)
                    .unwrap()
                    .write_all(b"garbage")
                    .unwrap();
            }
            How::Gone => remove(&path),
            How::Folder => {
                remove(&path);
                fs::create_dir(&path).unwrap();
            }
            How::File => {
                remove(&path);
                fs::write(&path, "").unwrap();
            }
            How::Forbidden => fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap(),
        }
    }

    /// Returns the kind of the damage, without the numbers in file names and
    /// the exact position.
    fn kind(&self, template: &Template) -> String {
        let kind: String = self
            .path
            .to_str()
            .unwrap()
            .chars()
            .filter(|c| !c.is_ascii_digit())
            .collect();
        let content = template
            .files
            .iter()
            .find(|(path, _)| *path == self.path)
            .map(|(_, content)| content);
        let length = content.map_or(0, |content| content.bytes.len());
        let how = match self.how {
            How::Flipped { at, .. } if at < 16 => "flipped at its head".to_owned(),
            How::Flipped { at, .. } if at + 24 >= length => "flipped at its tail".to_owned(),
            How::Flipped { .. } => "flipped".to_owned(),
            How::Cut(0) => "empty".to_owned(),
            How::Cut(at) if at + 1 == length => "cut by one".to_owned(),
            How::Cut(_) => "cut".to_owned(),
            other => format!("{other:?}"),
        };
        // The newest segment counts as a kind of its own.
        let is_newest = template.newest_segment() == Some(&*self.path);
        format!("{kind} {is_newest} {how}")
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.path.display(), self.how)
    }
}

fn writable(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

fn flip(path: &Path, at: usize, bit: u32) {
    let file = writable(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at as u64)
        .unwrap();
}

fn remove(path: &Path) {
    if path.is_dir() {
        fs::remove_dir_all(path).unwrap()
    } else {
        fs::remove_file(path).unwrap()
    }
}

/// Returns the builder of a server that respects permissions even if the test
/// runs as root.
fn unprivileged(store: &Path) -> HarkdBuilder {
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    if !is_root {
        return builder(store);
    }
    let setpriv = [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        "--",
    ];
    builder(store).run_by(setpriv)
}

#[derive(Debug, PartialEq, Eq)]
enum Reaction {
    /// The server does not start.
    Refused,
    /// An inbox is withheld until the damage is dropped.
    Undelivered,
    Whole,
}

/// Starts a server on a damaged store, and checks its reaction.
async fn check_reaction(store: &Path, damage: &Damage) -> Reaction {
    let start = || {
        let server = if let How::Forbidden = damage.how {
            unprivileged(store)
        } else {
            builder(store)
        };
        server.try_start()
    };
    match start() {
        Ok(server) if is_delivered(&server).await => {
            check_whole(server).await;
            Reaction::Whole
        }
        Ok(server) => {
            check_dropped(server, store).await;
            Reaction::Undelivered
        }
        Err(refusal) => {
            let line = check_refusal(store, &refusal);
            let again = start().expect_err("a refused store stays refused");
            assert_eq!(check_refusal(store, &again), line);
            Reaction::Refused
        }
    }
}

/// Returns whether all messages of bob are delivered. Acknowledges none.
async fn is_delivered(server: &Harkd) -> bool {
    let mut wire = Wire::connect(server.address()).await;
    match wire
        .ask(Request::Connect {
            user: name("bob"),
            password: None,
        })
        .await
    {
        Reply::Ok(_) => {}
        reply if is_unavailable(&reply) => return false,
        other => panic!("{other:?}"),
    }
    for n in ACKNOWLEDGED + 1..=QUEUED {
        let Ok(message) = timeout(SILENCE, wire.message()).await else {
            return false;
        };
        assert_eq!(message.text, text(n));
    }
    true
}

/// Returns the output of `harkd check` on a store, and whether it succeeds.
fn check_store(store: &Path, arguments: &[&str]) -> (bool, String) {
    let output = harkd()
        .arg("check")
        .arg(store)
        .args(arguments)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), printed)
}

/// Checks that the damaged inbox is found and dropped, and that all other data
/// is intact.
async fn check_dropped(mut server: Harkd, store: &Path) {
    server.signal("TERM");
    assert!(server.wait().success());
    let (is_whole, printed) = check_store(store, &[]);
    assert!(
        !is_whole && printed.contains("bob: damaged from number "),
        "{printed}"
    );
    let (is_dropped, printed) = check_store(store, &["--drop-damaged"]);
    assert!(is_dropped && printed.contains("bob: dropped"), "{printed}");
    let (is_whole, printed) = check_store(store, &[]);
    assert!(
        is_whole && printed.contains(" 0 damaged blocks"),
        "{printed}"
    );
    check_rest(store).await;
}

/// Checks that the server refused to start with one line that names place,
/// cause and remedy.
#[track_caller]
fn check_refusal(store: &Path, Refusal { status, log }: &Refusal) -> String {
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        !log.contains("panic") && !log.contains("backtrace"),
        "{log}"
    );
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.starts_with("harkd: "))
        .collect();
    let [line] = *lines else {
        panic!("not one line:\n{log}")
    };
    assert!(log.ends_with(&format!("{line}\n")), "{log}");
    assert!(
        line.contains(store.to_str().unwrap()) && line.contains("; "),
        "{log}"
    );
    line.to_owned()
}

/// Checks that all answered data is present.
async fn check_whole(mut server: Harkd) {
    let mut wire = Wire::hello(server.address(), SESSION).await;
    wire.write(7, Request::List { pattern: None }).await;
    assert_eq!(
        wire.reply_to(7).await,
        Reply::List(vec![name("bob"), name("eve"), name("sink")])
    );
    wire.ok(with_password("eve", SECRET)).await;
    wire.refused(with_password("eve", "wrong"), Code::Denied)
        .await;
    // A repeat has the former answer, and stores nothing.
    send_as(&mut wire, QUEUED).await;
    wire.sent("bob", "after it").await;
    let mut read = read(&server).await;
    assert_eq!(read.pop().unwrap(), "after it");
    let expected: Vec<_> = (ACKNOWLEDGED + 1..=QUEUED).map(text).collect();
    assert!(
        read == expected,
        "{} messages, not {}",
        read.len(),
        expected.len()
    );
    drop(wire);
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(!server.log().contains("panic"), "{}", server.log());
}

/// Checks a store after the damage was dropped: the remaining messages of bob
/// match the sent ones, and all other data is intact.
async fn check_rest(store: &Path) {
    let mut server = builder(store).start();
    let mut wire = Wire::hello(server.address(), SESSION).await;
    wire.ok(with_password("eve", SECRET)).await;
    send_as(&mut wire, QUEUED).await;
    wire.sent("bob", "the end").await;
    let left = read_to(&server, "the end").await;
    let numbers: Vec<u32> = left
        .iter()
        .map(|text| text.split_once(':').unwrap().0.parse().unwrap())
        .collect();
    assert!(
        numbers
            .iter()
            .zip(&left)
            .all(|(number, left)| *left == text(*number)),
        "texts that were never sent"
    );
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert!(
        numbers
            .iter()
            .all(|number| (ACKNOWLEDGED + 1..=QUEUED).contains(number)),
        "{numbers:?}"
    );
    drop(wire);
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(!server.log().contains("panic"), "{}", server.log());
}

/// Returns the messages queued for bob. Acknowledges none.
async fn read(server: &Harkd) -> Vec<String> {
    let mut wire = Wire::connect(server.address()).await;
    let count = wire.receive("bob").await;
    let mut texts = Vec::new();
    for _ in 0..count {
        let message = wire.message().await;
        wire.ack(message.sequence).await;
        texts.push(message.text.to_string());
    }
    texts
}

/// Returns the messages of bob before this text, if their number is unknown.
async fn read_to(server: &Harkd, end: &str) -> Vec<String> {
    let mut wire = Wire::connect(server.address()).await;
    wire.receive("bob").await;
    let mut texts = Vec::new();
    loop {
        let message = wire.message().await;
        wire.ack(message.sequence).await;
        if message.text == end {
            return texts;
        }
        texts.push(message.text.to_string());
    }
}

async fn try_all(is_clean: bool) {
    let Trial { time, mut random } = Trial::from_env();
    let template = Template::new(is_clean).await;
    let untouched = template.write();
    check_whole(builder(&untouched.path().join("store")).start()).await;

    let mut damages = template.representative(&mut random);
    let begun = Instant::now();
    let (mut refused, mut undelivered, mut whole) = (0, 0, 0);
    // The representative damages include all kinds.
    while begun.elapsed() < time || refused == 0 || undelivered == 0 || whole == 0 {
        let Some(damage) = damages.pop() else {
            assert!(
                refused > 0 && undelivered > 0 && whole > 0,
                "{refused} {undelivered} {whole}"
            );
            damages = template.damages(&mut random);
            damages.shuffle(&mut random);
            continue;
        };
        println!("{damage}");
        let home = template.write();
        let store = home.path().join("store");
        damage.inflict(&store);
        match check_reaction(&store, &damage).await {
            Reaction::Refused => refused += 1,
            Reaction::Undelivered => undelivered += 1,
            Reaction::Whole => whole += 1,
        }
    }
    println!("{refused} refused, {undelivered} not delivered, {whole} whole");
}

#[tokio::test]
async fn damage_to_a_closed_store_is_detected() {
    try_all(true).await;
}

#[tokio::test]
async fn damage_after_a_kill_is_detected() {
    try_all(false).await;
}

fn is_unavailable(reply: &Reply) -> bool {
    matches!(
        reply,
        Reply::Error {
            failure: Failure::Unavailable,
            ..
        }
    )
}

/// Damages the first hundred unread texts of bob while they are in use.
fn damage_messages(store: &Path) {
    let mut damaged = 0;
    for entry in fs::read_dir(store.join("log")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = used_part(&path);
        for n in ACKNOWLEDGED + 1..=ACKNOWLEDGED + 100 {
            let begin = format!("{n}:xxxx");
            let places = bytes.windows(begin.len()).enumerate();
            for (at, _) in places.filter(|(_, part)| *part == begin.as_bytes()) {
                flip(&path, at, 0);
                damaged += 1;
            }
        }
    }
    assert!(damaged >= 100, "there were texts in files");
}

#[tokio::test]
async fn damage_found_while_running_affects_one_inbox() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    fill(&store, true).await;
    let server = builder(&store).start();
    let mut wire = Wire::connect(server.address()).await;
    damage_messages(&store);
    let connect = |user| Request::Connect {
        user: name(user),
        password: None,
    };
    assert!(is_unavailable(&wire.ask(connect("bob")).await));
    server.wait_for_log("messages cannot be read");
    // The damage persists, and affects no other user.
    assert!(is_unavailable(&wire.ask(connect("bob")).await));
    wire.create("amy").await;
    wire.sent("amy", "hello").await;
    wire.ok(connect("amy")).await;
    assert_eq!(wire.message().await.text, "hello");
    wire.sent("bob", "stored all the same").await;
    wire.ok(Request::Delete {
        user: name("amy"),
        password: None,
    })
    .await;
    wire.ok(with_password("eve", SECRET)).await;
    wire.sent("eve", "hello").await;
    drop(wire);
    let mut server = server.stop_and_restart();
    assert!(!server.log().contains("panic"), "{}", server.log());
    let mut wire = Wire::connect(server.address()).await;
    assert!(
        is_unavailable(&wire.ask(connect("bob")).await),
        "it is not forgotten"
    );
    drop(wire);
    server.signal("TERM");
    assert!(server.wait().success());
    let (is_dropped, printed) = check_store(&store, &["--drop-damaged"]);
    assert!(is_dropped && printed.contains("bob: dropped"), "{printed}");
    // The remaining store works like any other.
    let server = builder(&store).start();
    let mut wire = Wire::connect(server.address()).await;
    wire.ok(with_password("eve", SECRET)).await;
    wire.sent("bob", "after it").await;
    let mut left: Vec<_> = (ACKNOWLEDGED + 101..=QUEUED).map(text).collect();
    left.push("stored all the same".to_owned());
    assert!(read_to(&server, "after it").await == left);
}
