//! Byte-heavy sends to inboxes that are never read, on the fastest available
//! disk: memory and disk usage stay bounded, and every send is answered soon.
//!
//! Runs for `HARK_TEST_SECONDS`.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hark_protocol::{Code, Reply, Request};
use hark_tests::{Harkd, Trial, Wire, name, send};

/// Number of inboxes.
const INBOXES: usize = 200;
/// Size of each sender's texts, in bytes.
const TEXT_BYTES: [usize; 4] = [60_000, 60_000, 20, 20];
/// Number of sends in flight for each sender.
const IN_FLIGHT: u32 = 4;
/// Capacity of an inbox in bytes; a full one is deleted and recreated.
const INBOX_BYTES_MAX: u64 = 4 << 20;
/// Limit for the resident memory of the server, in bytes.
const RESIDENT_BYTES_MAX: u64 = 300 << 20;
/// Limit for the files of the store, in bytes: twice the live texts, and the
/// reserve of the log.
const FILE_BYTES_MAX: u64 = 2 * INBOXES as u64 * INBOX_BYTES_MAX + (512 << 20);
/// Longest allowed wait for an answer.
const STALL_MAX: Duration = Duration::from_secs(5);

/// Shared counters of the senders.
#[derive(Default)]
struct Seen {
    is_over: AtomicBool,
    sent: AtomicU64,
    stall_ms: AtomicU64,
}

fn user(number: u64) -> String {
    format!("u{}", number % INBOXES as u64)
}

/// Sends to one inbox after another until the run is over.
async fn flood(mut client: Wire, sender: u64, text_bytes: usize, seen: Arc<Seen>) {
    let text = "x".repeat(text_bytes);
    let mut round = sender * 50;
    while !seen.is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let sends = (0..IN_FLIGHT).map(|nth| (nth + 1, send(&user(round + u64::from(nth)), &text)));
        client.write_all(sends).await;
        for nth in 0..IN_FLIGHT {
            match client.reply_to(nth + 1).await {
                Reply::Ok(_) => _ = seen.sent.fetch_add(1, Ordering::Relaxed),
                Reply::NotOk(refusal) if refusal.code == Code::QueueFull => {
                    let user = name(&user(round + u64::from(nth)));
                    client
                        .ok(Request::Delete {
                            user: user.clone(),
                            password: None,
                        })
                        .await;
                    // Another sender may have recreated it.
                    client
                        .ask(Request::Create {
                            user,
                            password: None,
                        })
                        .await;
                }
                Reply::NotOk(refusal) if refusal.code == Code::NoSuchUser => {}
                other => panic!("{other:?}"),
            }
        }
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap();
        seen.stall_ms.fetch_max(took_ms, Ordering::Relaxed);
        round += u64::from(IN_FLIGHT);
    }
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().filter_map(Result::ok);
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        // The file was removed meanwhile.
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_inboxes_keep_memory_and_disk_bounded() {
    let trial = Trial::from_env();
    let disk = if Path::new("/dev/shm").is_dir() {
        tempfile::tempdir_in("/dev/shm")
    } else {
        tempfile::tempdir()
    };
    let disk = disk.unwrap();
    let store = disk.path().join("store");
    let limit = format!("--max-queued-bytes={INBOX_BYTES_MAX}");
    let server = Harkd::builder().store(store.clone()).arg(limit).start();
    let mut client = Wire::connect(server.address()).await;
    for number in 0..INBOXES as u64 {
        client.create(&user(number)).await;
    }
    let seen = Arc::<Seen>::default();
    let mut senders = tokio::task::JoinSet::new();
    for (sender, text_bytes) in TEXT_BYTES.into_iter().enumerate() {
        let wire = Wire::connect(server.address()).await;
        senders.spawn(flood(wire, sender as u64, text_bytes, Arc::clone(&seen)));
    }
    let (begun, mut resident, mut files) = (Instant::now(), 0, 0);
    while begun.elapsed() < trial.time {
        tokio::time::sleep(Duration::from_millis(200)).await;
        resident = resident.max(server.resident_bytes());
        files = files.max(folder_bytes(&store));
    }
    seen.is_over.store(true, Ordering::Relaxed);
    while let Some(sender) = senders.join_next().await {
        sender.unwrap();
    }
    client
        .ok(Request::Create {
            user: name("last"),
            password: None,
        })
        .await;
    client.sent("last", "still answered").await;
    let (sent, stall) = (
        seen.sent.load(Ordering::Relaxed),
        seen.stall_ms.load(Ordering::Relaxed),
    );
    println!(
        "{sent} sent, at most {} MiB resident, {} MiB of files, {stall} ms for an answer",
        resident >> 20,
        files >> 20
    );
    assert!(sent > 100, "only {sent} sends were answered");
    assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes resident");
    assert!(files < FILE_BYTES_MAX, "{files} bytes of files");
    assert!(
        Duration::from_millis(stall) < STALL_MAX,
        "an answer took {stall} ms"
    );
}
