//! The real NATS as a cluster of processes, on free ports of the loopback, or
//! with some nodes on a machine whose link can be cut. The nodes use the
//! configuration of `deploy/cluster`, so that the tests cover the recommended
//! one.
#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::harkd::processor_time;
use crate::network::free_addresses;
use crate::{FarMachine, own_addresses};

/// Time limit for the election of leaders.
const AGREEMENT: Duration = Duration::from_secs(60);

/// Time limit for an answer of a node's monitoring port.
const ANSWER: Duration = Duration::from_secs(5);

/// Interval between two questions to the nodes.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Number of log lines of a node that are printed when a test fails.
const LOG_LINES_SHOWN: usize = 20;

const CONFIG: &str = include_str!("../../deploy/cluster/nats.conf");

/// Setting that turns on syncing.
const SYNC: &str = "sync_interval: always";

/// Section that only several nodes need.
const CLUSTER: &str = "\ncluster {";

/// Configuration of a cluster.
#[derive(Debug, Clone)]
pub struct NatsBuilder {
    nodes: usize,
    /// Prefix of commands on the far machine, and the nodes there.
    far: Option<(Vec<String>, Vec<usize>)>,
    config: String,
    ends_with_thread: bool,
}

/// A cluster of one or several nodes, indexed from 0 and killed on drop.
#[derive(Debug)]
pub struct Nats {
    nodes: Vec<Node>,
    _folder: TempDir,
}

/// A node, and its process while it runs.
#[derive(Debug)]
struct Node {
    name: String,
    client: SocketAddr,
    monitor: SocketAddr,
    log: PathBuf,
    /// Command line and environment of the process.
    words: Vec<String>,
    variables: Vec<(&'static str, String)>,
    process: Option<Child>,
    is_frozen: bool,
}

impl NatsBuilder {
    /// Runs these nodes on the far machine.
    ///
    /// # Panics
    /// If a node does not exist.
    #[must_use]
    pub fn on(mut self, far: &FarMachine, nodes: impl IntoIterator<Item = usize>) -> Self {
        let nodes: Vec<usize> = nodes.into_iter().collect();
        assert!(
            nodes.iter().all(|node| *node < self.nodes),
            "there are only {} nodes",
            self.nodes
        );
        self.far = Some((far.enter(), nodes));
        self
    }

    /// Adds lines to the configuration of each node.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.config.push('\n');
        self.config.push_str(lines);
        self
    }

    /// Turns off syncing before acknowledgements.
    ///
    /// # Panics
    /// If the configuration lacks the setting.
    #[must_use]
    pub fn without_sync(mut self) -> Self {
        assert!(
            self.config.contains(SYNC),
            "the configuration does not say {SYNC:?}"
        );
        self.config = self.config.replace(SYNC, "");
        self
    }

    /// Ends the nodes together with the thread that starts them, for a cluster
    /// that is never dropped.
    #[must_use]
    pub const fn ending_with_thread(mut self) -> Self {
        self.ends_with_thread = true;
        self
    }

    /// Starts the cluster and waits until its nodes agree.
    ///
    /// # Panics
    /// On a timeout, or if `nats-server` is missing.
    #[must_use]
    pub fn start(self) -> Nats {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let nodes = self.nodes(folder.path());
        let mut nats = Nats {
            nodes,
            _folder: folder,
        };
        for node in &mut nats.nodes {
            node.start();
        }
        nats.wait_until_current();
        nats
    }

    fn nodes(&self, folder: &Path) -> Vec<Node> {
        let config = folder.join("nats.conf");
        fs::write(&config, &self.config).unwrap();
        let near = match self.far {
            None => own_addresses(3 * self.nodes),
            // No other process listens on the far machine.
            Some(_) => free_addresses(FarMachine::NEAR_ADDRESS.parse().unwrap(), 3 * self.nodes),
        };
        let is_far = |node| {
            self.far
                .as_ref()
                .is_some_and(|(_, nodes)| nodes.contains(&node))
        };
        let address = |node: usize, which: usize| {
            let mut address = near[3 * node + which];
            if is_far(node) {
                address.set_ip(FarMachine::FAR_ADDRESS.parse().unwrap());
            }
            address
        };
        let routes: Vec<String> = (0..self.nodes)
            .map(|node| format!("nats://{}", address(node, 1)))
            .collect();
        let node = |node| {
            let name = format!("hark-{}", node + 1);
            let enter = self
                .far
                .iter()
                .filter(|_| is_far(node))
                .flat_map(|(enter, _)| enter.clone());
            let command = [
                program(),
                "--config".to_owned(),
                config.display().to_string(),
            ];
            let end = ["setpriv", "--pdeathsig", "KILL"].map(str::to_owned);
            let end = end.into_iter().filter(|_| self.ends_with_thread);
            Node {
                client: address(node, 0),
                monitor: address(node, 2),
                log: folder.join(format!("{name}.log")),
                words: enter.chain(end).chain(command).collect(),
                variables: vec![
                    ("HARK_NATS_NAME", name.clone()),
                    ("HARK_NATS_LISTEN", address(node, 0).to_string()),
                    ("HARK_NATS_CLUSTER", address(node, 1).to_string()),
                    ("HARK_NATS_ROUTES", format!("[{}]", routes.join(", "))),
                    ("HARK_NATS_STORE", folder.join(&name).display().to_string()),
                    ("HARK_NATS_HTTP", address(node, 2).to_string()),
                ],
                name,
                process: None,
                is_frozen: false,
            }
        };
        (0..self.nodes).map(node).collect()
    }
}

impl Nats {
    /// Returns the builder of a cluster of `nodes` nodes.
    ///
    /// # Panics
    /// If there are not one, three or five nodes: two have no majority without
    /// each other.
    #[must_use]
    pub fn builder(nodes: usize) -> NatsBuilder {
        assert!(
            [1, 3, 5].contains(&nodes),
            "a cluster has one, three or five nodes, not {nodes}"
        );
        let mut config = CONFIG.to_owned();
        if nodes == 1 {
            // A node with routes waits for other nodes.
            let (before, rest) = config
                .split_once(CLUSTER)
                .expect("a section for the cluster");
            let (_, after) = rest.split_once("\n}").expect("its end");
            config = format!("{before}{after}");
        }
        NatsBuilder {
            nodes,
            far: None,
            config,
            ends_with_thread: false,
        }
    }

    /// Starts three nodes and waits until they agree.
    #[must_use]
    pub fn start() -> Self {
        Self::builder(3).start()
    }

    /// Returns three nodes shared by the tests of one process, with a separate
    /// chat for each test. They end with the process.
    ///
    /// # Panics
    /// If they do not start.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Nats> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (give, taken) = mpsc::channel();
            // The nodes end with the thread that started them, so this one
            // never ends.
            std::thread::spawn(move || {
                // Some tests send more than the default limit of a node.
                let nats = Self::builder(3)
                    .config("max_payload: 8MB")
                    .ending_with_thread()
                    .start();
                give.send(nats).expect("a receiver");
                loop {
                    std::thread::park();
                }
            });
            taken.recv().expect("a cluster")
        })
    }

    /// Returns the addresses of all nodes, for `harkd --store`.
    #[must_use]
    pub fn url(&self) -> String {
        let urls: Vec<String> = (0..self.nodes.len())
            .map(|node| self.url_of(node))
            .collect();
        urls.join(",")
    }

    /// Returns the URL of one node.
    #[must_use]
    pub fn url_of(&self, node: usize) -> String {
        format!("nats://{}", self.nodes[node].client)
    }

    /// Returns the address of one node for direct connections.
    #[must_use]
    pub fn address_of(&self, node: usize) -> SocketAddr {
        self.nodes[node].client
    }

    /// Returns the address of a node's monitoring port.
    #[must_use]
    pub fn monitor_of(&self, node: usize) -> SocketAddr {
        self.nodes[node].monitor
    }

    /// Returns the number of nodes, including stopped ones.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns false: a cluster has at least one node.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns whether a node is running.
    #[must_use]
    pub fn is_running(&self, node: usize) -> bool {
        self.nodes[node].process.is_some()
    }

    /// Returns the log of a node, across restarts.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn log(&self, node: usize) -> String {
        fs::read_to_string(&self.nodes[node].log).unwrap()
    }

    /// Kills a node (SIGKILL) and waits for its exit.
    ///
    /// # Panics
    /// If it is not running.
    pub fn kill(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let mut process = node.process.take().expect("a node that runs");
        node.is_frozen = false;
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Restarts a node at the same address with its stored data. It still has
    /// to catch up: see [`Self::wait_until_current`].
    ///
    /// # Panics
    /// If it is running.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].start();
    }

    /// Deletes the store of a killed node.
    ///
    /// # Panics
    /// If it is running.
    pub fn wipe(&self, node: usize) {
        let node = &self.nodes[node];
        assert!(node.process.is_none(), "{} is running", node.name);
        let mut variables = node.variables.iter();
        let store = variables.find(|(variable, _)| *variable == "HARK_NATS_STORE");
        fs::remove_dir_all(&store.expect("a store").1).unwrap();
    }

    /// Returns the CPU time of the running nodes, in hundredths of a second.
    ///
    /// # Panics
    /// If the system's table cannot be read.
    #[must_use]
    pub fn processor_time(&self) -> u64 {
        let running = self.nodes.iter().filter_map(|node| node.process.as_ref());
        running.map(|process| processor_time(process.id())).sum()
    }

    /// Freezes a node, with all its connections open.
    ///
    /// # Panics
    /// If it is not running.
    pub fn freeze(&mut self, node: usize) {
        self.nodes[node].signal("STOP");
        self.nodes[node].is_frozen = true;
    }

    /// Resumes a frozen node.
    ///
    /// # Panics
    /// If it is not running.
    pub fn thaw(&mut self, node: usize) {
        self.nodes[node].signal("CONT");
        self.nodes[node].is_frozen = false;
    }

    /// Waits until all active nodes agree on a leader among them and have
    /// caught up.
    ///
    /// # Panics
    /// On a timeout; the message says what is missing.
    #[track_caller]
    pub fn wait_until_current(&self) {
        self.wait_for("the nodes to agree", || self.agreed_leader());
    }

    /// Returns the leader of all nodes, once they agree.
    ///
    /// # Panics
    /// On a timeout.
    #[track_caller]
    #[must_use]
    pub fn leader(&self) -> usize {
        self.wait_for("the nodes to agree", || self.agreed_leader())
    }

    /// Waits for the leader of a stream, by its own account, and returns it.
    ///
    /// # Panics
    /// On a timeout.
    #[track_caller]
    #[must_use]
    pub fn leader_of(&self, stream: &str) -> usize {
        self.wait_for(&format!("a leader of the stream {stream}"), || {
            self.current_leader(stream)
        })
    }

    /// Waits until a node has caught up in a stream, by the account of its
    /// leader.
    ///
    /// # Panics
    /// On a timeout.
    #[track_caller]
    pub fn wait_until_current_in(&self, stream: &str, node: usize) {
        let name = &*self.nodes[node].name;
        self.wait_for(&format!("{name} to have caught up in {stream}"), || {
            let leader = self.current_leader(stream)?;
            let cluster = self.stream(leader, stream)?;
            let mut replicas = cluster["replicas"].as_array().into_iter().flatten();
            let is_current = replicas.any(|peer| peer["name"] == *name && peer["current"] == true);
            if leader == node || is_current {
                Ok(())
            } else {
                Err(cluster.to_string())
            }
        });
    }

    /// Queries the monitoring port of a node, such as `/jsz?streams=1`.
    ///
    /// # Errors
    /// On a timeout or an error of the node.
    pub fn ask(&self, node: usize, path: &str) -> Result<Value, String> {
        let (status, body) =
            get(self.nodes[node].monitor, path).map_err(|error| error.to_string())?;
        match (status, serde_json::from_str(&body)) {
            (200, Ok(value)) => Ok(value),
            _ => Err(format!("{status} {body}")),
        }
    }

    /// Returns the leader of a stream, by its own account.
    fn current_leader(&self, stream: &str) -> Result<usize, String> {
        let is_its = |node: &usize| {
            self.stream(*node, stream)
                .is_ok_and(|cluster| cluster["leader"] == *self.nodes[*node].name)
        };
        self.active_nodes()
            .find(is_its)
            .ok_or_else(|| "no node claims to be the leader".to_owned())
    }

    /// Returns the replicas of a stream, as seen by one node.
    fn stream(&self, node: usize, stream: &str) -> Result<Value, String> {
        let all = self.ask(node, "/jsz?accounts=1&streams=1")?;
        let accounts = all["account_details"].as_array().into_iter().flatten();
        let mut streams =
            accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
        let found = streams
            .find(|detail| detail["name"] == *stream)
            .map(|detail| detail["cluster"].clone());
        found.ok_or_else(|| format!("{} does not have it", self.nodes[node].name))
    }

    /// Returns the nodes that can answer.
    fn active_nodes(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| self.is_running(*node) && !self.nodes[*node].is_frozen)
    }

    /// Returns the leader if all active nodes agree on one of them, or the
    /// reason.
    fn agreed_leader(&self) -> Result<usize, String> {
        let mut leaders = Vec::new();
        for node in self.active_nodes() {
            self.ask(node, "/healthz")
                .map_err(|why| format!("{}: {why}", self.nodes[node].name))?;
            if self.nodes.len() == 1 {
                return Ok(node);
            }
            leaders.push(self.ask(node, "/jsz")?["meta_cluster"]["leader"].clone());
        }
        let is_leader = |node: &usize| {
            leaders
                .iter()
                .all(|leader| *leader == *self.nodes[*node].name)
        };
        self.active_nodes()
            .find(is_leader)
            .ok_or_else(|| format!("their leaders are {leaders:?}"))
    }

    #[track_caller]
    fn wait_for<T>(&self, what: &str, attempt: impl Fn() -> Result<T, String>) -> T {
        let until = Instant::now() + AGREEMENT;
        loop {
            match attempt() {
                Ok(is) => return is,
                Err(why) => assert!(
                    Instant::now() < until,
                    "timeout while waiting for {what}: {why}"
                ),
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process {
                // Fails if the process has ended already.
                drop(process.kill());
                drop(process.wait());
            }
            if std::thread::panicking() {
                let log = fs::read_to_string(&node.log).unwrap_or_default();
                let from = log.lines().count().saturating_sub(LOG_LINES_SHOWN);
                let last: Vec<&str> = log.lines().skip(from).collect();
                eprintln!("end of the log of {}:\n{}", node.name, last.join("\n"));
            }
        }
    }
}

impl Node {
    fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let (program, arguments) = self.words.split_first().expect("at least the program");
        let mut command = Command::new(program);
        command.args(arguments).envs(self.variables.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let process = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        self.process = Some(process);
    }

    fn signal(&self, name: &str) {
        let id = self.process.as_ref().expect("a node that runs").id();
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(id.to_string())
            .status()
            .unwrap();
        assert!(status.success(), "kill -{name} failed");
    }
}

/// Returns the path of the server, whose version is set in
/// `tests/requirements.txt`.
fn program() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join(".venv/bin/nats-server");
    assert!(
        path.exists(),
        "the NATS server that this test needs is not installed in .venv: run ./test, which does it"
    );
    path.display().to_string()
}

/// Sends an HTTP request, and reads until the connection closes.
fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: nats\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}
