//! The contract on a real cluster of three nodes, with each message on one of
//! them and on all. What kills nodes and cuts links stands in `tests/`.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::*;
use crate::store::contract::{Home, Limits, contract_suite};

const NODES: usize = 3;

/// The nodes of a cluster, which live as long as the process.
fn nodes() -> &'static [String] {
    static NODES: OnceLock<Vec<String>> = OnceLock::new();
    NODES.get_or_init(|| {
        let (send, started) = mpsc::channel();
        // The nodes end with the thread that has started them.
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
    assert!(binary.exists(), "{} is missing: run ./test once, which installs it", binary.display());
    let ports: Vec<_> = (0..2 * NODES).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = ports.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    let (clients, routes) = ports.split_at(NODES);
    let all: Vec<_> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
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
        command.args(["--pdeathsig", "KILL"]).arg(&binary).arg("-c").arg(&file);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        drop(child);
    }
    clients.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect()
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
}

/// A chat of its own on the cluster.
struct Chat {
    name: String,
    replicas: usize,
}

impl Chat {
    fn new(replicas: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self { name: format!("chat{}", COUNT.fetch_add(1, Ordering::Relaxed)), replicas }
    }

    fn config(&self, limits: Limits) -> ClusterConfig {
        ClusterConfig {
            nodes: format!("{}/{}", nodes().join(","), self.name).parse().unwrap(),
            credentials: Credentials::None,
            ca: None,
            monitors: Vec::new(),
            text_bytes_max: 65_000,
            replicas: Some(self.replicas),
            shards: 2,
            accounts_max: limits.accounts,
            sessions_max: limits.sessions,
            queued_messages_max: limits.messages,
            queued_bytes_max: limits.bytes,
        }
    }

    fn try_open(&self, limits: Limits) -> Result<ClusterStore, OpenError> {
        let config = self.config(limits);
        // The test's own runtime must not be blocked in.
        thread::spawn(move || runtime().block_on(ClusterStore::open(config))).join().unwrap()
    }
}

impl Home for Chat {
    fn open(&self, limits: Limits) -> Arc<dyn Store> {
        let patient_until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.try_open(limits) {
                Ok(store) => return Arc::new(store),
                // The nodes have to find each other first.
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
}

mod on_one_node {
    use super::*;
    contract_suite!(Chat::new(1));
}

mod on_three_nodes {
    use super::*;
    contract_suite!(Chat::new(3));
}
