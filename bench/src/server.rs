//! The process of a measured server: its start and end, processor time, memory, and bytes
//! written.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// The longest time that a server may take to listen, or to end after a signal.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(120);

/// The polling interval.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A running server, killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    name: &'static str,
    address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts a process with its output in a file in `folder`, without waiting until it listens.
    ///
    /// # Errors
    /// If it cannot be run.
    pub(crate) fn start(
        name: &'static str,
        mut command: Command,
        port: u16,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let log = folder.join("server.log");
        let file = File::options().create(true).append(true).open(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        Ok(Self {
            child,
            name,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            log,
        })
    }

    /// Returns its address.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it accepts connections.
    ///
    /// # Errors
    /// If it ends or takes too long, with its output.
    pub(crate) fn wait_until_it_listens(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} has ended ({status}): {}", self.name, self.said());
            }
            ensure!(
                started.elapsed() < OPERATION_TIMEOUT,
                "{} does not listen: {}",
                self.name,
                self.said()
            );
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Returns the end of its output.
    pub(crate) fn said(&self) -> String {
        let said = fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let mut lines: Vec<&str> = said.lines().rev().take(10).collect();
        lines.reverse();
        lines.join("\n")
    }

    /// Returns the processor time of all its threads, including ended ones, in seconds with a
    /// resolution of 10 ms.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(&self.proc("stat")?)
    }

    /// Returns the resident memory, in bytes.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        Ok(1024 * field(&self.proc("smaps_rollup")?, "Rss:")?)
    }

    /// Returns the peak resident memory, in bytes.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub(crate) fn peak_resident_bytes(&self) -> anyhow::Result<u64> {
        Ok(1024 * field(&self.proc("status")?, "VmHWM:")?)
    }

    /// Returns the bytes written to disk.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub(crate) fn written_bytes(&self) -> anyhow::Result<u64> {
        field(&self.proc("io")?, "write_bytes:")
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path)
            .with_context(|| format!("{} has ended: {}", self.name, self.said()))
    }

    /// Stops it in order, and waits for its end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no process")?;
        kill_process(pid, Signal::TERM)?;
        let told = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(
                told.elapsed() < OPERATION_TIMEOUT,
                "{} does not stop: {}",
                self.name,
                self.said()
            );
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Kills the process.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Returns the processor time of this process, in seconds.
///
/// # Errors
/// If `/proc` cannot be read.
pub(crate) fn own_cpu_seconds() -> anyhow::Result<f64> {
    cpu_seconds(&fs::read_to_string("/proc/self/stat")?)
}

/// The clock ticks per second of `/proc`, the same on every architecture of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

fn cpu_seconds(stat: &str) -> anyhow::Result<f64> {
    // The program's name may contain spaces; it ends with the last bracket.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut next = || {
        ticks
            .next()
            .context("no times in stat")?
            .context("no number in stat")
    };
    let (user, system) = (next()?, next()?);
    Ok((user + system) as f64 / TICKS_PER_SECOND)
}

fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("no {name}"))?;
    line.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("no {name}"))
}

/// Returns a free port.
///
/// # Errors
/// If there is none.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Writes a configuration file into the folder of a server, and returns its path.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_settings(folder: &Path, name: &str, settings: &str) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(name);
    fs::write(&path, settings).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Returns whether this process runs as root, in which case some servers switch users.
pub(crate) fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Returns the first line of a program's version output.
///
/// # Errors
/// If it cannot be run, or prints nothing.
pub(crate) fn version(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&said)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    ensure!(!line.is_empty(), "it prints no version");
    Ok(line)
}

/// Returns the bytes of all files in a folder.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            folder_bytes(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_parsed_behind_brackets() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194304 100 0 0 0 150 25 0 0 20 0 4 0 12345";
        assert_eq!(cpu_seconds(stat).unwrap(), 1.75);
        cpu_seconds("7 (a) S 1").unwrap_err();
    }

    #[test]
    fn field_of_proc_is_found_by_name() {
        let text = "rchar: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n";
        assert_eq!(field(text, "write_bytes:").unwrap(), 4096);
        field(text, "read_bytes:").unwrap_err();
    }
}
