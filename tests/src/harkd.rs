//! The real server as a process, on a free port of the loopback.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::binaries::set_environment;
use crate::{Certificate, StoreLocation, TIMEOUT, binary, wait_until};

/// First number of most servers.
const NUMBERS_AFTER: u64 = 1_000_000;

/// Configuration of a server process.
#[derive(Debug, Clone)]
pub struct HarkdBuilder {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    /// Prefix of the command, such as `strace`.
    wrapper: Vec<String>,
    listen: String,
    location: Option<StoreLocation>,
    certificate: Option<Arc<Certificate>>,
    /// First number; `None`: by the clock.
    numbers_after: Option<u64>,
}

/// A running server, killed on drop.
#[derive(Debug)]
pub struct Harkd {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
    /// Reads the log until its end.
    reader: Option<JoinHandle<()>>,
    builder: HarkdBuilder,
    location: StoreLocation,
}

/// A server that exited before it listened.
#[derive(Debug)]
pub struct Refusal {
    /// Exit status.
    pub status: ExitStatus,
    /// The whole log.
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

    /// Listens on this address instead of the loopback.
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

    /// Runs the server by a wrapper, which must replace itself by the server:
    /// signals are sent to the started process.
    #[must_use]
    pub fn run_by<S: Into<String>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Uses this store, and keeps it afterwards.
    #[must_use]
    pub fn store(mut self, store: impl Into<StoreLocation>) -> Self {
        self.location = Some(store.into());
        self
    }

    /// Numbers messages by the clock, as in production. A new store then waits
    /// for the next second, which most tests avoid.
    #[must_use]
    pub fn numbers_by_clock(mut self) -> Self {
        self.numbers_after = None;
        self
    }

    /// Sets or removes the certificate.
    #[must_use]
    pub fn certificate(mut self, certificate: Option<&Arc<Certificate>>) -> Self {
        self.certificate = certificate.cloned();
        self
    }

    /// Starts the server and waits until it listens.
    ///
    /// # Panics
    /// If it does not start; the message contains its log.
    #[must_use]
    pub fn start(self) -> Harkd {
        self.try_start()
            .unwrap_or_else(|refusal| panic!("harkd did not start: {refusal:?}"))
    }

    /// Starts the server and waits until it listens or exits.
    ///
    /// # Errors
    /// Its exit status and log, if it exits before it listens.
    ///
    /// # Panics
    /// On a timeout.
    pub fn try_start(self) -> Result<Harkd, Refusal> {
        let location = self.location.clone().unwrap_or_else(StoreLocation::fresh);
        launch(self, location)
    }
}

impl Harkd {
    /// Returns the builder of a server with a store of its own, and with a
    /// certificate so that every front is open.
    #[must_use]
    pub fn builder() -> HarkdBuilder {
        HarkdBuilder {
            arguments: Vec::new(),
            variables: Vec::new(),
            wrapper: Vec::new(),
            listen: "127.0.0.1:0".to_owned(),
            location: None,
            certificate: Some(Arc::new(Certificate::trusted())),
            numbers_after: Some(NUMBERS_AFTER),
        }
    }

    /// Starts a server with a store of its own.
    #[must_use]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Returns the address that the server listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the folder of the store.
    #[must_use]
    pub fn store(&self) -> &Path {
        self.location.path()
    }

    /// Returns the location of the store.
    #[must_use]
    pub const fn location(&self) -> &StoreLocation {
        &self.location
    }

    /// Returns the log so far.
    ///
    /// # Panics
    /// If the thread that reads the log has panicked.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log contains a text.
    ///
    /// # Panics
    /// On a timeout.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), || {
            self.log.lock().unwrap().contains(text)
        });
    }

    /// Kills the server (SIGKILL) and restarts it on the same store and port.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn kill_and_restart(mut self) -> Self {
        self.kill();
        self.restart()
    }

    /// Stops the server (SIGTERM) and restarts it on the same store and port.
    ///
    /// # Panics
    /// If it fails to stop in order or to start.
    #[must_use]
    pub fn stop_and_restart(mut self) -> Self {
        self.signal("TERM");
        assert!(self.wait().success());
        self.restart()
    }

    /// Restarts the server, which has exited, on the same store and port.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn restart(self) -> Self {
        let listen = self.address.to_string();
        let (builder, location) = (
            HarkdBuilder {
                listen,
                ..self.builder.clone()
            },
            self.location.clone(),
        );
        drop(self);
        launch(builder, location)
            .unwrap_or_else(|refusal| panic!("harkd did not start again: {refusal:?}"))
    }

    /// Kills the server (SIGKILL) and waits for its exit, after which the log
    /// is complete.
    ///
    /// # Panics
    /// If the process does not exist.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    /// Sends a signal by name, such as `TERM`.
    ///
    /// # Panics
    /// If that fails.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(status.success(), "kill -{name} failed");
    }

    /// Waits for the exit of the server, after which the log is complete.
    ///
    /// # Panics
    /// On a timeout.
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

    /// Returns the number of bytes that the server has written to a client and
    /// that do not fit into the client's receive buffer.
    ///
    /// # Panics
    /// If the connection is unknown to the system.
    #[must_use]
    pub fn unsent_bytes(&self, client: SocketAddr) -> u64 {
        self.socket(client).unsent_bytes
    }

    /// Returns whether TCP keepalive is on for a client.
    ///
    /// # Panics
    /// If the connection is unknown to the system.
    #[must_use]
    pub fn keeps_alive(&self, client: SocketAddr) -> bool {
        self.socket(client).has_keepalive
    }

    /// Returns the number of established client connections.
    ///
    /// # Panics
    /// If the system's table cannot be read.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.sockets()
            .iter()
            .filter(|socket| socket.is_established)
            .count()
    }

    /// Waits until the server has accepted every connection and read all
    /// received bytes.
    ///
    /// # Panics
    /// On a timeout.
    #[track_caller]
    pub fn wait_until_read(&self) {
        wait_until("the server to read", || {
            self.sockets().iter().all(|socket| socket.unread_bytes == 0)
        });
    }

    fn socket(&self, client: SocketAddr) -> Socket {
        let is_its = |socket: &Socket| socket.client_port == client.port();
        self.sockets()
            .into_iter()
            .find(is_its)
            .expect("the connection")
    }

    /// Returns its sockets. The system's table is read in pieces, so rows are missing
    /// or repeated if sockets of other processes come and go meanwhile: two readings
    /// in a row have to agree.
    fn sockets(&self) -> Vec<Socket> {
        let key = |socket: &Socket| (socket.client_port, socket.is_established);
        let mut sockets = self.read_sockets();
        wait_until("the same sockets twice", || {
            let former = std::mem::replace(&mut sockets, self.read_sockets());
            former.iter().map(key).eq(sockets.iter().map(key))
        });
        sockets
    }

    fn read_sockets(&self) -> Vec<Socket> {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let all = table
            .lines()
            .skip(1)
            .map(|line| Socket::parse(line).expect("a row of /proc/net/tcp"));
        // Other servers may use the same port at other addresses.
        let is_mine = |socket: &Socket| {
            socket.port == self.address.port()
                && (self.listens_everywhere() || socket.ip == self.address.ip())
        };
        all.filter(is_mine).collect()
    }

    fn listens_everywhere(&self) -> bool {
        self.builder.listen.starts_with("0.0.0.0:")
    }

    /// Returns the CPU time of the server, in hundredths of a second.
    ///
    /// # Panics
    /// If the system's table cannot be read.
    #[must_use]
    pub fn processor_time(&self) -> u64 {
        processor_time(self.pid())
    }

    /// Returns the resident memory in bytes, without the pages of its program: their
    /// number depends on the code that it has executed so far.
    ///
    /// # Panics
    /// If the system's table cannot be read.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("RssAnon:"))
            .expect("a line RssAnon");
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .expect("a number")
            .parse()
            .unwrap();
        kib * 1024
    }
}

/// Returns the CPU time of a process, in hundredths of a second.
pub(crate) fn processor_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").expect("the name of the program");
    fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum()
}

impl Drop for Harkd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of harkd:\n{}", self.log());
        }
        // Fails if the process has ended already.
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
    /// For a listening socket: the number of connections to be accepted.
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

fn launch(builder: HarkdBuilder, location: StoreLocation) -> Result<Harkd, Refusal> {
    let harkd = binary("harkd");
    let mut words = builder
        .wrapper
        .iter()
        .map(OsStr::new)
        .chain([harkd.as_os_str()]);
    let mut command = Command::new(words.next().expect("at least harkd"));
    set_environment(&mut command);
    command
        .args(words)
        .args(["--listen", &builder.listen])
        .args(location.args());
    if let Some(certificate) = &builder.certificate {
        command
            .arg("--tls-cert")
            .arg(certificate.path())
            .arg("--tls-key")
            .arg(certificate.key());
    }
    if let Some(number) = builder.numbers_after {
        command.env("HARKD_NUMBERS_AFTER", number.to_string());
    }
    command.args(&builder.arguments);
    command
        .envs(builder.variables.clone())
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let stderr = child.stderr.take().expect("its log");
    let log = Arc::<Mutex<String>>::default();
    let (sender, receiver) = mpsc::channel();
    let copy = Arc::clone(&log);
    // Ends with the process whose log it reads.
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.contains("listening") && !line.contains("unix:") {
                // Only the first address has a receiver.
                sender.send(address_in(&line)).ok();
            }
            let mut log = copy.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    match receiver.recv_timeout(TIMEOUT) {
        Ok(address) => Ok(Harkd {
            child,
            address,
            log,
            reader: Some(reader),
            builder,
            location,
        }),
        Err(RecvTimeoutError::Disconnected) => {
            let status = child.wait().unwrap();
            reader.join().unwrap();
            let log = log.lock().unwrap().clone();
            Err(Refusal { status, log })
        }
        Err(RecvTimeoutError::Timeout) => {
            drop(child.kill());
            drop(child.wait());
            panic!(
                "timeout while starting harkd; its log:\n{}",
                log.lock().unwrap()
            );
        }
    }
}

/// Parses the address in `… listening … address=127.0.0.1:1234`, or its JSON
/// form, and makes it reachable.
fn address_in(line: &str) -> SocketAddr {
    let (_, rest) = line.rsplit_once("address").expect("an address");
    let rest = rest.trim_start_matches(['"', ':', '=']);
    let address: String = rest
        .chars()
        .take_while(|c| c.is_ascii_hexdigit() || ".:[]".contains(*c))
        .collect();
    let address: SocketAddr = address.parse().expect("an address");
    match address.ip().is_unspecified() {
        true => SocketAddr::from(([127, 0, 0, 1], address.port())),
        false => address,
    }
}
