//! The real NATS as a cluster of processes, on free ports of the loopback, or
//! with some of its nodes on a machine whose link can be cut. The nodes take
//! the configuration of `deploy/cluster`, so that what is tested is what is
//! recommended.
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

use crate::network::free_addresses;
use crate::{FarMachine, own_addresses};

/// How long a cluster may take to agree on its leaders.
const AGREEMENT: Duration = Duration::from_secs(60);

/// How long a node may take to answer a question about itself.
const ANSWER: Duration = Duration::from_secs(5);

/// How often nodes are asked whether they agree.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Lines of a node's log that are shown when a test fails.
const LOG_LINES_SHOWN: usize = 20;

const CONFIG: &str = include_str!("../../deploy/cluster/nats.conf");

/// The line of it that says when it syncs.
const SYNC: &str = "sync_interval: always";

/// The section of it that only several nodes need.
const CLUSTER: &str = "\ncluster {";

/// How a cluster is to be started.
#[derive(Debug, Clone)]
pub struct NatsBuilder {
    nodes: usize,
    /// A command that runs the one that follows it on the far machine, and who
    /// is there.
    far: Option<(Vec<String>, Vec<usize>)>,
    config: String,
    ends_with_thread: bool,
}

/// A cluster of one node or of several, which are counted from 0. Dropping it
/// kills them.
#[derive(Debug)]
pub struct Nats {
    nodes: Vec<Node>,
    _folder: TempDir,
}

/// One node, and its process while there is one.
#[derive(Debug)]
struct Node {
    name: String,
    client: SocketAddr,
    monitor: SocketAddr,
    log: PathBuf,
    /// Words of the command that starts it, and its variables.
    words: Vec<String>,
    variables: Vec<(&'static str, String)>,
    process: Option<Child>,
    is_frozen: bool,
}

impl NatsBuilder {
    /// Has these nodes run on the far machine.
    ///
    /// # Panics
    /// Where there are no such nodes.
    #[must_use]
    pub fn on(mut self, far: &FarMachine, nodes: impl IntoIterator<Item = usize>) -> Self {
        let nodes: Vec<usize> = nodes.into_iter().collect();
        assert!(nodes.iter().all(|node| *node < self.nodes), "there are only {} nodes", self.nodes);
        self.far = Some((far.enter(), nodes));
        self
    }

    /// Adds this to the configuration of each node.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.config.push('\n');
        self.config.push_str(lines);
        self
    }

    /// Has them acknowledge before their disks have it.
    ///
    /// # Panics
    /// Where the configuration does not say the contrary.
    #[must_use]
    pub fn without_sync(mut self) -> Self {
        assert!(self.config.contains(SYNC), "the configuration does not say {SYNC:?}");
        self.config = self.config.replace(SYNC, "");
        self
    }

    /// Has the nodes end with the thread that starts them, for a cluster that
    /// nobody drops.
    #[must_use]
    pub const fn ending_with_thread(mut self) -> Self {
        self.ends_with_thread = true;
        self
    }

    /// Starts it, and waits until its nodes agree.
    ///
    /// # Panics
    /// Where they do not, or `nats-server` is missing.
    #[must_use]
    pub fn start(self) -> Nats {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let nodes = self.nodes(folder.path());
        let mut nats = Nats { nodes, _folder: folder };
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
            // On the far machine nothing else listens.
            Some(_) => free_addresses(FarMachine::NEAR_ADDRESS.parse().unwrap(), 3 * self.nodes),
        };
        let is_far = |node| self.far.as_ref().is_some_and(|(_, nodes)| nodes.contains(&node));
        let address = |node: usize, which: usize| {
            let mut address = near[3 * node + which];
            if is_far(node) {
                address.set_ip(FarMachine::FAR_ADDRESS.parse().unwrap());
            }
            address
        };
        let routes: Vec<String> =
            (0..self.nodes).map(|node| format!("nats://{}", address(node, 1))).collect();
        let node = |node| {
            let name = format!("hark-{}", node + 1);
            let enter = self.far.iter().filter(|_| is_far(node)).flat_map(|(enter, _)| enter.clone());
            let command = [program(), "--config".to_owned(), config.display().to_string()];
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
    /// So many nodes, that can be told more first.
    ///
    /// # Panics
    /// Where they are not one, three or five: two cannot outvote one.
    #[must_use]
    pub fn builder(nodes: usize) -> NatsBuilder {
        assert!([1, 3, 5].contains(&nodes), "a cluster has one, three or five nodes, not {nodes}");
        let mut config = CONFIG.to_owned();
        if nodes == 1 {
            // A node that is told of others waits for them.
            let (before, rest) = config.split_once(CLUSTER).expect("a section for the cluster");
            let (_, after) = rest.split_once("\n}").expect("its end");
            config = format!("{before}{after}");
        }
        NatsBuilder { nodes, far: None, config, ends_with_thread: false }
    }

    /// Three nodes that agree.
    #[must_use]
    pub fn start() -> Self {
        Self::builder(3).start()
    }

    /// Three nodes that the tests of one process share, each with a chat of its
    /// own. They end with it.
    ///
    /// # Panics
    /// Where they do not start.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Nats> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (give, taken) = mpsc::channel();
            // Nodes end with the thread that has started them, and this one never does.
            std::thread::spawn(move || {
                // Some tests send more than a node takes by default.
                let nats = Self::builder(3).config("max_payload: 8MB").ending_with_thread().start();
                give.send(nats).expect("somebody waits for it");
                loop {
                    std::thread::park();
                }
            });
            taken.recv().expect("a cluster")
        })
    }

    /// Where all nodes are, as `harkd --store` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        let urls: Vec<String> = (0..self.nodes.len()).map(|node| self.url_of(node)).collect();
        urls.join(",")
    }

    /// Where one node is.
    #[must_use]
    pub fn url_of(&self, node: usize) -> String {
        format!("nats://{}", self.nodes[node].client)
    }

    /// The same, for who speaks to it directly.
    #[must_use]
    pub fn address_of(&self, node: usize) -> SocketAddr {
        self.nodes[node].client
    }

    /// Where one node says how it is.
    #[must_use]
    pub fn monitor_of(&self, node: usize) -> SocketAddr {
        self.nodes[node].monitor
    }

    /// How many nodes there are, with those that do not run.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether a node has a process.
    #[must_use]
    pub fn is_running(&self, node: usize) -> bool {
        self.nodes[node].process.is_some()
    }

    /// What a node has logged, in all its lives.
    ///
    /// # Panics
    /// Where that cannot be read.
    #[must_use]
    pub fn log(&self, node: usize) -> String {
        fs::read_to_string(&self.nodes[node].log).unwrap()
    }

    /// Kills a node (SIGKILL), and waits until it is gone.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn kill(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let mut process = node.process.take().expect("a node that runs");
        node.is_frozen = false;
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts a node again, where it was and with what it has stored. It has
    /// yet to catch up: see [`Self::wait_until_current`].
    ///
    /// # Panics
    /// Where it runs.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].start();
    }

    /// Stops a node in its tracks, with all its connections open.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn freeze(&mut self, node: usize) {
        self.nodes[node].signal("STOP");
        self.nodes[node].is_frozen = true;
    }

    /// Lets a node go on that was frozen.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn thaw(&mut self, node: usize) {
        self.nodes[node].signal("CONT");
        self.nodes[node].is_frozen = false;
    }

    /// Waits until all nodes that run and are not frozen have the same leader,
    /// one of them, and have caught up in all that they keep.
    ///
    /// # Panics
    /// Where they do not in time: with what is missing.
    #[track_caller]
    pub fn wait_until_current(&self) {
        self.wait_for("the nodes to agree", || self.agreed());
    }

    /// The node that leads all of them, once they agree.
    ///
    /// # Panics
    /// Where they do not in time.
    #[track_caller]
    #[must_use]
    pub fn leader(&self) -> usize {
        self.wait_for("the nodes to agree", || self.agreed())
    }

    /// The node that leads a stream, by its own account: waits until there is
    /// one.
    ///
    /// # Panics
    /// Where there is none in time.
    #[track_caller]
    #[must_use]
    pub fn leader_of(&self, stream: &str) -> usize {
        self.wait_for(&format!("a leader of the stream {stream}"), || self.leading(stream))
    }

    /// Waits until a node has caught up in a stream, by the account of its
    /// leader.
    ///
    /// # Panics
    /// Where it does not in time.
    #[track_caller]
    pub fn wait_until_current_in(&self, stream: &str, node: usize) {
        let name = &*self.nodes[node].name;
        self.wait_for(&format!("{name} to have caught up in {stream}"), || {
            let leader = self.leading(stream)?;
            let cluster = self.stream(leader, stream)?;
            let mut replicas = cluster["replicas"].as_array().into_iter().flatten();
            let is_current = replicas.any(|peer| peer["name"] == *name && peer["current"] == true);
            if leader == node || is_current { Ok(()) } else { Err(cluster.to_string()) }
        });
    }

    /// What a node says of itself at its monitoring port, such as
    /// `/jsz?streams=1`.
    ///
    /// # Errors
    /// Where it does not answer in time, or with an error, which is repeated.
    pub fn ask(&self, node: usize, path: &str) -> Result<Value, String> {
        let (status, body) = get(self.nodes[node].monitor, path).map_err(|error| error.to_string())?;
        match (status, serde_json::from_str(&body)) {
            (200, Ok(value)) => Ok(value),
            _ => Err(format!("{status} {body}")),
        }
    }

    /// Who leads a stream, by its own account.
    fn leading(&self, stream: &str) -> Result<usize, String> {
        let is_its = |node: &usize| {
            self.stream(*node, stream).is_ok_and(|cluster| cluster["leader"] == *self.nodes[*node].name)
        };
        self.awake().find(is_its).ok_or_else(|| "nobody says that it is".to_owned())
    }

    /// Who has a stream, as one node sees it.
    fn stream(&self, node: usize, stream: &str) -> Result<Value, String> {
        let all = self.ask(node, "/jsz?accounts=1&streams=1")?;
        let accounts = all["account_details"].as_array().into_iter().flatten();
        let mut streams =
            accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
        let found = streams.find(|detail| detail["name"] == *stream).map(|detail| detail["cluster"].clone());
        found.ok_or_else(|| format!("{} does not have it", self.nodes[node].name))
    }

    /// Nodes that can answer.
    fn awake(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| self.is_running(*node) && !self.nodes[*node].is_frozen)
    }

    /// Who leads, where all that are awake say the same of one of them; or why
    /// they do not.
    fn agreed(&self) -> Result<usize, String> {
        let mut leaders = Vec::new();
        for node in self.awake() {
            self.ask(node, "/healthz").map_err(|why| format!("{}: {why}", self.nodes[node].name))?;
            if self.nodes.len() == 1 {
                return Ok(node);
            }
            leaders.push(self.ask(node, "/jsz")?["meta_cluster"]["leader"].clone());
        }
        let is_leader = |node: &usize| leaders.iter().all(|leader| *leader == *self.nodes[*node].name);
        self.awake().find(is_leader).ok_or_else(|| format!("their leaders are {leaders:?}"))
    }

    #[track_caller]
    fn wait_for<T>(&self, what: &str, attempt: impl Fn() -> Result<T, String>) -> T {
        let until = Instant::now() + AGREEMENT;
        loop {
            match attempt() {
                Ok(is) => return is,
                Err(why) => assert!(Instant::now() < until, "waited in vain for {what}: {why}"),
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process {
                // It may have ended by itself, which is as good.
                drop(process.kill());
                drop(process.wait());
            }
            if std::thread::panicking() {
                let log = fs::read_to_string(&node.log).unwrap_or_default();
                let from = log.lines().count().saturating_sub(LOG_LINES_SHOWN);
                let last: Vec<&str> = log.lines().skip(from).collect();
                eprintln!("{} said last:\n{}", node.name, last.join("\n"));
            }
        }
    }
}

impl Node {
    fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let (program, arguments) = self.words.split_first().expect("at least the program");
        let mut command = Command::new(program);
        command.args(arguments).envs(self.variables.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        self.process = Some(process);
    }

    fn signal(&self, name: &str) {
        let id = self.process.as_ref().expect("a node that runs").id();
        let status = Command::new("kill").arg(format!("-{name}")).arg(id.to_string()).status().unwrap();
        assert!(status.success(), "kill -{name} failed");
    }
}

/// The server, of the version that `tests/requirements.txt` names.
fn program() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(".venv/bin/nats-server");
    assert!(
        path.exists(),
        "the NATS server that this test needs is not installed in .venv: run ./test, which does it"
    );
    path.display().to_string()
}

/// Asks by HTTP, and has the connection closed after the answer.
fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: nats\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}
