//! A network of two machines whose link can be cut, in namespaces of the test's
//! own, which are invisible to other processes and removed with it. Also
//! addresses that a test has for itself without a namespace.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use rand::RngExt as _;

use crate::disk::is_root;

/// Environment variable that marks a test inside of its own network, and names
/// the file that proves the run.
const INSIDE: &str = "HARK_TEST_IN_OWN_NETWORK";

/// The ends of the link.
const NEAR: &str = "near";
const FAR: &str = "far";

/// The machine at the far end of a link from the test's own, which exists until
/// dropped.
#[derive(Debug)]
pub struct FarMachine {
    /// A process that only keeps the namespace alive.
    keeper: Child,
}

impl FarMachine {
    /// Address of the test's own machine, from the far one.
    pub const NEAR_ADDRESS: &str = "10.200.0.1";

    /// Address of the far machine.
    pub const FAR_ADDRESS: &str = "10.200.0.2";

    /// Address of the far machine over a second link, which is never cut.
    pub const FAR_ADDRESS_UNCUT: &str = "10.201.0.2";

    /// Reruns the test `name` of the module `module` (as `module_path!` gives
    /// it) in a process and a network of its own with such a machine. The test
    /// calls this first. Returns `None` in the outer process, after the test
    /// has passed there.
    ///
    /// # Panics
    /// If the inner test fails, or if the system forbids namespaces; the
    /// message names the required permission.
    #[must_use]
    pub fn of_test(module: &str, name: &str) -> Option<Self> {
        if let Some(proof) = std::env::var_os(INSIDE) {
            std::fs::write(proof, "").expect("a file");
            return Some(Self::new());
        }
        // Test programs name their tests without the crate.
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
        command
            .arg("--net")
            .arg(std::env::current_exe().expect("the path of the test"));
        command
            .args(["--exact", &*name, "--nocapture"])
            .env(INSIDE, &proof);
        let status = command
            .status()
            .expect("unshare, of the package util-linux");
        assert!(
            status.success(),
            "the test has failed in a network of its own: see above. It needs root, or that users may make namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
        );
        assert!(proof.exists(), "no test is named {name}");
        None
    }

    fn new() -> Self {
        let mut keeper = Command::new("unshare");
        keeper.args(["--net", "sh", "-c", "echo ready && exec cat"]);
        let mut keeper = keeper
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("its output"))
            .read_line(&mut line)
            .expect("a line");
        assert_eq!(line, "ready\n");
        let far = Self { keeper };
        ip(&["link", "set", "lo", "up"]);
        far.ip(&["link", "set", "lo", "up"]);
        far.link([NEAR, FAR], [Self::NEAR_ADDRESS, Self::FAR_ADDRESS]);
        far.link(
            ["near-uncut", "far-uncut"],
            ["10.201.0.1", Self::FAR_ADDRESS_UNCUT],
        );
        far
    }

    /// Creates a link between the two machines, with the names and addresses of
    /// its ends.
    fn link(&self, [near, far]: [&str; 2], [near_address, far_address]: [&str; 2]) {
        let process = self.keeper.id().to_string();
        ip(&[
            "link", "add", near, "type", "veth", "peer", "name", far, "netns", &process,
        ]);
        ip(&["addr", "add", &format!("{near_address}/24"), "dev", near]);
        ip(&["link", "set", near, "up"]);
        self.ip(&["addr", "add", &format!("{far_address}/24"), "dev", far]);
        self.ip(&["link", "set", far, "up"]);
    }

    /// Drops all packets on the link silently.
    ///
    /// # Panics
    /// If that fails.
    pub fn cut(&self) {
        self.ip(&["link", "set", FAR, "down"]);
    }

    /// Restores the link.
    ///
    /// # Panics
    /// If that fails.
    pub fn mend(&self) {
        self.ip(&["link", "set", FAR, "up"]);
    }

    /// Returns the prefix of a command that runs on the far machine.
    #[must_use]
    pub fn enter(&self) -> Vec<String> {
        std::iter::once("nsenter".to_owned())
            .chain(self.flags())
            .collect()
    }

    fn flags(&self) -> [String; 3] {
        [
            format!("--target={}", self.keeper.id()),
            "--net".to_owned(),
            "--preserve-credentials".to_owned(),
        ]
    }

    /// Returns this command, to run on the far machine.
    #[must_use]
    pub fn run(&self, command: &Command) -> Command {
        let mut there = Command::new("nsenter");
        there
            .args(self.flags())
            .arg(command.get_program())
            .args(command.get_args());
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
        // Fails if the process has ended already.
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

/// Returns `count` unused loopback addresses, reserved for the test: outgoing
/// connections take their ports at 127.0.0.1, never at these addresses, even
/// while their owner is down.
///
/// # Panics
/// If no ports are free.
#[must_use]
pub fn own_addresses(count: usize) -> Vec<SocketAddr> {
    let mut random = rand::rng();
    let (second, third, fourth) = (
        random.random_range(1..255),
        random.random(),
        random.random_range(1..255),
    );
    free_addresses(Ipv4Addr::new(127, second, third, fourth).into(), count)
}

/// Returns `count` unused addresses of this host.
pub(crate) fn free_addresses(host: IpAddr, count: usize) -> Vec<SocketAddr> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind((host, 0)).expect("a port"))
        .collect();
    held.iter()
        .map(|listener| listener.local_addr().expect("its address"))
        .collect()
}

fn ip(arguments: &[&str]) {
    succeed(Command::new("ip").args(arguments));
}

fn succeed(command: &mut Command) {
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?} has failed: {status}");
}
