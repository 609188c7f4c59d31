//! A network of two machines whose link can be cut: namespaces of the test's
//! own, so that nobody else sees it and nothing of it is left. And addresses
//! that a test has for itself without one.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use rand::RngExt as _;

use crate::disk::is_root;

/// Tells a test that it runs in a network of its own, and names the file that
/// it makes to show that it has.
const INSIDE: &str = "HARK_TEST_IN_OWN_NETWORK";

/// The ends of the link.
const NEAR: &str = "near";
const FAR: &str = "far";

/// The machine far from the test, linked to the one that the test runs on.
/// There for as long as this is.
#[derive(Debug)]
pub struct FarMachine {
    /// A process that does nothing but keep the namespace.
    keeper: Child,
}

impl FarMachine {
    /// Where the test's own machine is reached from the far one.
    pub const NEAR_ADDRESS: &str = "10.200.0.1";

    /// Where the far machine is reached.
    pub const FAR_ADDRESS: &str = "10.200.0.2";

    /// Where it is reached by another link, which is never cut.
    pub const FAR_ADDRESS_UNCUT: &str = "10.201.0.2";

    /// Runs the test `name` of the module `module` (as `module_path!` gives it),
    /// which calls this first, again in a process and a network of its own with
    /// such a machine. Returns `None` after the test has passed there: nothing
    /// is left to do.
    ///
    /// # Panics
    /// If the test has failed there, or if the system does not permit it: with
    /// what is needed.
    #[must_use]
    pub fn of_test(module: &str, name: &str) -> Option<Self> {
        if let Some(proof) = std::env::var_os(INSIDE) {
            std::fs::write(proof, "").expect("a file");
            return Some(Self::new());
        }
        // The test program names its tests without the name of the crate.
        let name = match module.split_once("::") {
            Some((_, module)) => format!("{module}::{name}"),
            None => name.to_owned(),
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let proof = folder.path().join("ran");
        let mut command = Command::new("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.arg("--net").arg(std::env::current_exe().expect("the path of the test"));
        command.args(["--exact", &*name, "--nocapture"]).env(INSIDE, &proof);
        let status = command.status().expect("unshare, of the package util-linux");
        assert!(
            status.success(),
            "the test has failed in a network of its own: see above. It needs root, or that users may make namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
        );
        assert!(proof.exists(), "there is no test of the name {name}");
        None
    }

    fn new() -> Self {
        let mut keeper = Command::new("unshare");
        keeper.args(["--net", "sh", "-c", "echo ready && exec cat"]);
        let mut keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        let far = Self { keeper };
        ip(&["link", "set", "lo", "up"]);
        far.ip(&["link", "set", "lo", "up"]);
        far.link([NEAR, FAR], [Self::NEAR_ADDRESS, Self::FAR_ADDRESS]);
        far.link(["near-uncut", "far-uncut"], ["10.201.0.1", Self::FAR_ADDRESS_UNCUT]);
        far
    }

    /// A link between the two machines: the names and the addresses of its ends.
    fn link(&self, [near, far]: [&str; 2], [near_address, far_address]: [&str; 2]) {
        let process = self.keeper.id().to_string();
        ip(&["link", "add", near, "type", "veth", "peer", "name", far, "netns", &process]);
        ip(&["addr", "add", &format!("{near_address}/24"), "dev", near]);
        ip(&["link", "set", near, "up"]);
        self.ip(&["addr", "add", &format!("{far_address}/24"), "dev", far]);
        self.ip(&["link", "set", far, "up"]);
    }

    /// Lets nothing through any more, without a word to either side.
    ///
    /// # Panics
    /// Where that cannot be done.
    pub fn cut(&self) {
        self.ip(&["link", "set", FAR, "down"]);
    }

    /// Lets everything through again.
    ///
    /// # Panics
    /// Where that cannot be done.
    pub fn mend(&self) {
        self.ip(&["link", "set", FAR, "up"]);
    }

    /// A command that runs the one that follows it on that machine, and
    /// becomes it.
    #[must_use]
    pub fn enter(&self) -> Vec<String> {
        std::iter::once("nsenter".to_owned()).chain(self.flags()).collect()
    }

    fn flags(&self) -> [String; 3] {
        [format!("--target={}", self.keeper.id()), "--net".to_owned(), "--preserve-credentials".to_owned()]
    }

    /// This command, on that machine.
    #[must_use]
    pub fn run(&self, command: &Command) -> Command {
        let mut there = Command::new("nsenter");
        there.args(self.flags()).arg(command.get_program()).args(command.get_args());
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => there.env(variable, value),
                None => there.env_remove(variable),
            };
        }
        there
    }

    fn ip(&self, arguments: &[&str]) {
        let mut command = Command::new("ip");
        succeed(&mut self.run(command.args(arguments)));
    }
}

impl Drop for FarMachine {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

/// So many addresses of the loopback at which nobody listens, and nobody will
/// who was not told. What connects elsewhere takes its port at 127.0.0.1, and so
/// never one of these, also while who listens there is down for a while.
///
/// # Panics
/// Where there are no ports.
#[must_use]
pub fn own_addresses(count: usize) -> Vec<SocketAddr> {
    let mut random = rand::rng();
    let (second, third, fourth) = (random.random_range(1..255), random.random(), random.random_range(1..255));
    free_addresses(Ipv4Addr::new(127, second, third, fourth).into(), count)
}

/// So many addresses of this host at which nobody listens.
pub(crate) fn free_addresses(host: IpAddr, count: usize) -> Vec<SocketAddr> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind((host, 0)).expect("a port")).collect();
    held.iter().map(|listener| listener.local_addr().expect("its address")).collect()
}

fn ip(arguments: &[&str]) {
    succeed(Command::new("ip").args(arguments));
}

fn succeed(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?} has failed: {status}");
}
