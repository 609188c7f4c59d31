//! The store contract on a real cluster of three nodes, with one replica and with three.
//! Tests that kill nodes or partition the network are in `tests/`.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use hark_protocol::Code;
use tokio::runtime::Runtime;

use super::*;
use crate::store::contract::{self, ALL, Home, Limits, WIDE, contract_suite, name, stored, text};
use crate::store::{Append, Outcome, Position};
use crate::store::{End, Event};

const NODES: usize = 3;

/// The nodes of a cluster, which live as long as the process.
pub(crate) fn nodes() -> &'static [String] {
    static NODES: OnceLock<Vec<String>> = OnceLock::new();
    NODES.get_or_init(|| {
        let (send, started) = mpsc::channel();
        // The nodes end with the thread that started them.
        thread::spawn(move || {
            let folder = tempfile::tempdir().unwrap();
            send.send(start(folder.path())).unwrap();
            loop {
                thread::park();
            }
        });
        started.recv().unwrap()
    })
}

fn start(folder: &Path) -> Vec<String> {
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/nats-server");
    assert!(
        binary.exists(),
        "{} is missing: run ./test once, which installs it",
        binary.display()
    );
    let ports: Vec<_> = (0..2 * NODES)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let ports: Vec<u16> = ports
        .iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect();
    let (clients, routes) = ports.split_at(NODES);
    let all: Vec<_> = routes
        .iter()
        .map(|port| format!("nats://127.0.0.1:{port}"))
        .collect();
    for (node, (client, route)) in clients.iter().zip(routes).enumerate() {
        let file = folder.join(format!("{node}.conf"));
        let settings = format!(
            "server_name: n{node}\nlisten: 127.0.0.1:{client}\n\
             jetstream {{ store_dir: {:?}, sync_interval: always }}\n\
             cluster {{ name: test, listen: 127.0.0.1:{route}, routes: [{}] }}\n",
            folder.join(node.to_string()),
            all.join(", ")
        );
        fs::write(&file, settings).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(&binary)
            .arg("-c")
            .arg(&file);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        drop(child);
    }
    clients
        .iter()
        .map(|port| format!("nats://127.0.0.1:{port}"))
        .collect()
}

/// The runtime of these tests, which lives as long as the process.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    })
}

/// A separate chat on the cluster.
struct Chat {
    name: String,
    replicas: usize,
}

impl Chat {
    fn new(replicas: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self {
            name: format!("chat{}", COUNT.fetch_add(1, Ordering::Relaxed)),
            replicas,
        }
    }

    fn config(&self, limits: Limits) -> ClusterConfig {
        ClusterConfig {
            nodes: format!("{}/{}", nodes().join(","), self.name)
                .parse()
                .unwrap(),
            credentials: Credentials::None,
            ca: None,
            monitors: Vec::new(),
            text_bytes_max: 65_000,
            is_tool: false,
            may_create: true,
            replicas: Some(self.replicas),
            // A small limit of accounts is not divided.
            shards: if limits.accounts < 10 { 1 } else { 3 },
            shard_cache_bytes: 1 << 20,
            accounts_max: limits.accounts,
            sessions_max: limits.sessions,
            queued_messages_max: limits.messages,
            queued_bytes_max: limits.bytes,
        }
    }

    fn open_patiently(&self, limits: Limits) -> ClusterStore {
        let patient_until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.try_open(limits) {
                Ok(store) => return store,
                // The nodes need time to find each other.
                Err(error @ (OpenError::Connect { .. } | OpenError::Stream { .. }))
                    if Instant::now() < patient_until =>
                {
                    eprintln!("not yet: {error}");
                }
                Err(error) => panic!("{error}"),
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn try_open(&self, limits: Limits) -> Result<ClusterStore, OpenError> {
        let config = self.config(limits);
        // Blocking is not allowed on the test's own runtime.
        thread::spawn(move || runtime().block_on(ClusterStore::open(config)))
            .join()
            .unwrap()
    }
}

impl Home for Chat {
    fn open(&self, limits: Limits) -> Arc<dyn Store> {
        Arc::new(self.open_patiently(limits))
    }
}

mod on_one_node {
    use super::*;
    contract_suite!(Chat::new(1));
}

mod on_three_nodes {
    use super::*;
    contract_suite!(Chat::new(3));
}

/// The store of the server that owns every shard, and another one.
async fn owner_and_other(chat: &Chat) -> [Arc<ClusterStore>; 2] {
    let owner = Arc::new(chat.open_patiently(WIDE));
    [owner, Arc::new(chat.open_patiently(WIDE))]
}

#[test]
fn shard_outlives_its_owner() {
    runtime().block_on(async {
        let [one, two] = owner_and_other(&Chat::new(3)).await;
        let bob = contract::create(&*one, "bob").await;
        let mut numbers = Vec::new();
        for n in 0..60 {
            let store = if n % 2 == 0 { &one } else { &two };
            numbers.push(stored(&**store, text("bob", &n.to_string())).await);
        }
        drop(one);
        let begun = Instant::now();
        let page = loop {
            if let Ok(page) = two.read(&bob, Position::default(), ALL).await {
                break page;
            }
        };
        let pause = begun.elapsed();
        assert!(pause < Duration::from_secs(10), "no answer for {pause:?}");
        assert!(
            page.messages
                .iter()
                .map(|message| message.position.sequence)
                .eq(numbers)
        );
        stored(&*two, text("bob", "after")).await;
    });
}

#[test]
fn subscription_at_another_server_gets_messages() {
    runtime().block_on(async {
        let [one, two] = owner_and_other(&Chat::new(3)).await;
        for store in [&one, &two] {
            let other = if Arc::ptr_eq(store, &one) { &two } else { &one };
            let user = if Arc::ptr_eq(store, &one) {
                "amy"
            } else {
                "bob"
            };
            let account = contract::create(&**store, user).await;
            let mut subscription = other.receive(&account).await.unwrap().unwrap();
            assert_eq!(contract::next_event(&mut subscription).await, Event::Lagged);
            subscription.follow();
            stored(&**store, text(user, "hello")).await;
            let Event::Appended(messages) = contract::next_event(&mut subscription).await else {
                panic!()
            };
            assert_eq!(&*messages[0].text, "hello");
            let successor = store.receive(&account).await.unwrap().unwrap();
            assert_eq!(
                contract::next_event(&mut subscription).await,
                Event::Ended(End::TakenOver)
            );
            assert_eq!(successor.queued(), 1);
        }
    });
}

#[test]
fn deletion_ends_senders_at_every_server() {
    runtime().block_on(async {
        let [one, two] = owner_and_other(&Chat::new(3)).await;
        for store in [&one, &two] {
            let (amy, bob) = (
                contract::create(&**store, "amy").await,
                contract::create(&**store, "bob").await,
            );
            let by_amy = |content| Append {
                sender: Some(amy.clone()),
                ..text("bob", content)
            };
            stored(&*one, by_amy("one")).await;
            stored(&*two, by_amy("two")).await;
            assert_eq!(store.delete(&amy).await, Ok(true));
            for sender in [&one, &two] {
                let denied = Append {
                    allow_anonymous: false,
                    ..by_amy("late")
                };
                assert_eq!(
                    sender.append(denied).await,
                    Ok(Outcome::Refused(Code::Denied))
                );
            }
            let read = contract::read(&**store, &bob).await;
            assert!(
                read.iter()
                    .all(|message| message.sender == Some(name("amy")))
                    && read.len() == 2
            );
            assert_eq!(store.delete(&bob).await, Ok(true));
        }
    });
}
