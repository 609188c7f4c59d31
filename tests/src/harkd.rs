//! The real server as a process, on a free port of the loopback.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use crate::{Certificate, PATIENCE, Place, wait_until};

/// Where the numbers of most servers begin.
const NUMBERS_AFTER: u64 = 1_000_000;

/// The size of a file of the log, in MiB. Small files are made sooner, and used up
/// sooner.
const SEGMENT_MIB: u32 = 4;

/// Sets that size.
const SEGMENT_SIZE_VARIABLE: &str = "HARKD_SEGMENT_SIZE";

/// How a server is to be started.
#[derive(Debug, Clone)]
pub struct HarkdBuilder {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    /// A command that runs the command that follows it, such as `strace`.
    wrapper: Vec<String>,
    listen: String,
    place: Option<Place>,
    certificate: Option<Arc<Certificate>>,
    /// Where its numbers begin; `None`: by the clock.
    numbers_after: Option<u64>,
}

/// A server that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Harkd {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
    /// Reads the log to its end.
    reader: Option<JoinHandle<()>>,
    builder: HarkdBuilder,
    place: Place,
}

/// A server that has ended before it listened.
#[derive(Debug)]
pub struct Refusal {
    /// How it has ended.
    pub status: ExitStatus,
    /// All that it said.
    pub log: String,
}

impl HarkdBuilder {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Has it listen elsewhere than on the loopback.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, variable: &str, value: &str) -> Self {
        self.variables.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// Has another command run it, which must become it: signals go to the
    /// process that was started.
    #[must_use]
    pub fn run_by<S: Into<String>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Uses this store, and leaves it there.
    #[must_use]
    pub fn store(mut self, store: impl Into<Place>) -> Self {
        self.place = Some(store.into());
        self
    }

    /// Numbers messages by the clock, as an operator's server does. A new store then
    /// waits for the next second, which most tests have no use for.
    #[must_use]
    pub fn numbers_by_clock(mut self) -> Self {
        self.numbers_after = None;
        self
    }

    /// Gives it this certificate, or none.
    #[must_use]
    pub fn certificate(mut self, certificate: Option<&Arc<Certificate>>) -> Self {
        self.certificate = certificate.cloned();
        self
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// Where it does not start: with what it said.
    #[must_use]
    pub fn start(self) -> Harkd {
        self.try_start().unwrap_or_else(|refusal| panic!("harkd did not start: {refusal:?}"))
    }

    /// Starts it and waits until it listens, or has ended.
    ///
    /// # Errors
    /// How it has ended without listening, and what it said.
    ///
    /// # Panics
    /// Where it does neither in time.
    pub fn try_start(self) -> Result<Harkd, Refusal> {
        let place = self.place.clone().unwrap_or_else(Place::fresh);
        launch(self, place)
    }
}

impl Harkd {
    /// A server with a store of its own, and a certificate so that every front
    /// is open, that can be given arguments first.
    #[must_use]
    pub fn builder() -> HarkdBuilder {
        HarkdBuilder {
            arguments: Vec::new(),
            variables: Vec::new(),
            wrapper: Vec::new(),
            listen: "127.0.0.1:0".to_owned(),
            place: None,
            certificate: Some(Arc::new(Certificate::trusted())),
            numbers_after: Some(NUMBERS_AFTER),
        }
    }

    /// A server with a store of its own.
    #[must_use]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The folder of its store.
    #[must_use]
    pub fn store(&self) -> &Path {
        self.place.path()
    }

    /// Where its store is.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// What it has logged so far.
    ///
    /// # Panics
    /// Where the thread that reads the log has panicked.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has logged something.
    ///
    /// # Panics
    /// Where that does not come in time.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), || self.log.lock().unwrap().contains(text));
    }

    /// Kills it (SIGKILL) and starts it again on the same store and port.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn kill_and_restart(mut self) -> Self {
        self.kill();
        self.restart()
    }

    /// Stops it (SIGTERM) and starts it again on the same store and port.
    ///
    /// # Panics
    /// Where it does not stop as it should, or does not start.
    #[must_use]
    pub fn stop_and_restart(mut self) -> Self {
        self.signal("TERM");
        assert!(self.wait().success());
        self.restart()
    }

    /// Starts it again on the same store and port, after it has ended.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn restart(self) -> Self {
        let listen = self.address.to_string();
        let (builder, place) = (HarkdBuilder { listen, ..self.builder.clone() }, self.place.clone());
        drop(self);
        launch(builder, place).unwrap_or_else(|refusal| panic!("harkd did not start again: {refusal:?}"))
    }

    /// Kills it (SIGKILL), and waits until it is gone. By then the log is whole.
    ///
    /// # Panics
    /// Where there is no such process.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    /// Sends it a signal, by name, such as `TERM`.
    ///
    /// # Panics
    /// Where that fails.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(status.success(), "kill -{name} failed");
    }

    /// Waits for its end. By then the log is whole.
    ///
    /// # Panics
    /// Where it does not end in time.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the end of harkd", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status.unwrap()
    }

    /// Bytes that it has written to a client, and that the client's machine has
    /// no room for since the client does not read.
    ///
    /// # Panics
    /// Where there is no such connection, or the system does not say.
    #[must_use]
    pub fn unsent_bytes(&self, client: SocketAddr) -> u64 {
        self.socket(client).unsent_bytes
    }

    /// Whether the system asks an idle client for life from time to time.
    ///
    /// # Panics
    /// Where there is no such connection, or the system does not say.
    #[must_use]
    pub fn keeps_alive(&self, client: SocketAddr) -> bool {
        self.socket(client).has_keepalive
    }

    /// Connections of its clients that it holds open. Those that its system has
    /// closed for it are none.
    ///
    /// # Panics
    /// Where the system does not say.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.sockets().iter().filter(|socket| socket.is_established).count()
    }

    /// Waits until it has accepted everybody, and read all that they have
    /// written.
    ///
    /// # Panics
    /// Where it does not in time.
    #[track_caller]
    pub fn wait_until_read(&self) {
        wait_until("the server to read", || self.sockets().iter().all(|socket| socket.unread_bytes == 0));
    }

    fn socket(&self, client: SocketAddr) -> Socket {
        let is_its = |socket: &Socket| socket.client_port == client.port();
        self.sockets().into_iter().find(is_its).expect("the connection")
    }

    fn sockets(&self) -> Vec<Socket> {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let all = table.lines().skip(1).map(|line| Socket::parse(line).expect("a row of /proc/net/tcp"));
        // Other servers may have the same port at other addresses.
        let is_mine = |socket: &Socket| {
            socket.port == self.address.port()
                && (self.listens_everywhere() || socket.ip == self.address.ip())
        };
        all.filter(is_mine).collect()
    }

    fn listens_everywhere(&self) -> bool {
        self.builder.listen.starts_with("0.0.0.0:")
    }

    /// What it has used of the processors, in hundredths of a second.
    ///
    /// # Panics
    /// Where the system does not say.
    #[must_use]
    pub fn processor_time(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").expect("the name of the program");
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    }

    /// Returns the memory that it has allocated and touched, in bytes. The pages of
    /// its program, which depend on what it has executed so far, do not count.
    ///
    /// # Panics
    /// Where the system does not say.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("a line RssAnon");
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().unwrap();
        kib * 1024
    }
}

impl Drop for Harkd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("harkd said:\n{}", self.log());
        }
        // It may have ended by itself, which is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A row of `/proc/net/tcp`.
struct Socket {
    ip: IpAddr,
    port: u16,
    client_port: u16,
    is_established: bool,
    unsent_bytes: u64,
    /// Of a socket that listens: connections that are not accepted.
    unread_bytes: u64,
    has_keepalive: bool,
}

impl Socket {
    fn parse(row: &str) -> Option<Self> {
        let mut columns = row.split_whitespace().skip(1);
        let mut address = || {
            let (ip, port) = columns.next()?.split_once(':')?;
            // The address is in the byte order of the machine.
            let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
            Some((IpAddr::from(ip), u16::from_str_radix(port, 16).ok()?))
        };
        let ((ip, port), (_, client_port)) = (address()?, address()?);
        let is_established = columns.next()? == "01";
        let (unsent, unread) = columns.next()?.split_once(':')?;
        Some(Self {
            ip,
            port,
            client_port,
            is_established,
            unsent_bytes: u64::from_str_radix(unsent, 16).ok()?,
            unread_bytes: u64::from_str_radix(unread, 16).ok()?,
            has_keepalive: columns.next()?.starts_with("02:"),
        })
    }
}

/// Names the folder of binaries that are up to date. Without it they are built,
/// and since the features of what one package needs are fewer than those of the
/// workspace with its tests, most of the dependencies are compiled once more.
const BINARIES_VARIABLE: &str = "HARK_TEST_BINARIES";

/// Returns the path of a binary of this workspace, built if `HARK_TEST_BINARIES`
/// does not name the folder of those that are up to date.
///
/// # Panics
/// If it cannot be built, or is not in that folder.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(|| std::env::var_os(BINARIES_VARIABLE).map_or_else(build, PathBuf::from));
    let path = path.join(name);
    assert!(path.exists(), "there is no {}", path.display());
    path
}

/// The `hark` client as a command, with nothing of the user's environment.
///
/// # Panics
/// Where it cannot be built.
#[must_use]
pub fn hark(state: &Path) -> Command {
    let mut command = Command::new(binary("hark"));
    forget_settings(&mut command);
    command.env("XDG_STATE_HOME", state).env("HOME", state);
    command
}

/// `harkd` as a command, with nothing of the user's environment. A store that it
/// makes has small files.
///
/// # Panics
/// Where it cannot be built.
#[must_use]
pub fn harkd() -> Command {
    let mut command = Command::new(binary("harkd"));
    forget_settings(&mut command);
    command.env(SEGMENT_SIZE_VARIABLE, SEGMENT_MIB.to_string());
    command
}

/// The operator makes an account in a store that no server has open.
///
/// # Panics
/// Where that is refused.
pub fn add_user(store: &Path, user: &str, password: Option<&str>) {
    let mut command = harkd();
    command.args(["user", "add", user]).env("HARKD_STORE", store);
    match password {
        Some(password) => command.env("HARKD_PASSWORD", password),
        None => command.arg("--no-password"),
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn forget_settings(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("HARK") {
            command.env_remove(variable);
        }
    }
}

/// Builds the binaries in the profile of the tests, and says where they are.
fn build() -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "build",
        "--locked",
        "--quiet",
        "--package",
        "hark-server",
        "--package",
        "hark-client",
        "--bins",
    ]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    // What Cargo says to a test about its package looks to the build of `ring`
    // as if everything had changed.
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&variable);
        }
    }
    assert!(cargo.status().expect("cargo").success(), "the binaries cannot be built");
    // A test is target/PROFILE/deps/NAME.
    let test = std::env::current_exe().expect("the path of the test");
    test.parent().and_then(Path::parent).expect("the folder of the profile").to_owned()
}

fn launch(builder: HarkdBuilder, place: Place) -> Result<Harkd, Refusal> {
    let harkd = binary("harkd");
    let mut words = builder.wrapper.iter().map(OsStr::new).chain([harkd.as_os_str()]);
    let mut command = Command::new(words.next().expect("at least harkd"));
    forget_settings(&mut command);
    command.args(words).args(["--listen", &builder.listen]).args(place.args());
    if let Some(certificate) = &builder.certificate {
        command.arg("--tls-cert").arg(certificate.path()).arg("--tls-key").arg(certificate.key());
    }
    command.env(SEGMENT_SIZE_VARIABLE, SEGMENT_MIB.to_string());
    if let Some(number) = builder.numbers_after {
        command.env("HARKD_NUMBERS_AFTER", number.to_string());
    }
    command.args(&builder.arguments);
    command.envs(builder.variables.clone()).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let stderr = child.stderr.take().expect("its log");
    let log = Arc::<Mutex<String>>::default();
    let (sender, receiver) = mpsc::channel();
    let copy = Arc::clone(&log);
    // It ends with the process whose log it reads.
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.contains("listening") {
                // Nobody waits any more after the first.
                sender.send(address_in(&line)).ok();
            }
            let mut log = copy.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(address) => Ok(Harkd { child, address, log, reader: Some(reader), builder, place }),
        Err(RecvTimeoutError::Disconnected) => {
            let status = child.wait().unwrap();
            reader.join().unwrap();
            let log = log.lock().unwrap().clone();
            Err(Refusal { status, log })
        }
        Err(RecvTimeoutError::Timeout) => {
            drop(child.kill());
            drop(child.wait());
            panic!("harkd did not start in time; it said:\n{}", log.lock().unwrap());
        }
    }
}

/// How to get to the address in `… listening … address=127.0.0.1:1234`, or its
/// JSON form.
fn address_in(line: &str) -> SocketAddr {
    let (_, rest) = line.rsplit_once("address").expect("an address");
    let rest = rest.trim_start_matches(['"', ':', '=']);
    let address: String = rest.chars().take_while(|c| c.is_ascii_hexdigit() || ".:[]".contains(*c)).collect();
    let address: SocketAddr = address.parse().expect("an address");
    match address.ip().is_unspecified() {
        true => SocketAddr::from(([127, 0, 0, 1], address.port())),
        false => address,
    }
}
