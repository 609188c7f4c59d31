//! A disk small enough to be filled: a tmpfs in a mount namespace of its own,
//! invisible to other processes and removed with it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A small disk, which exists until dropped.
#[derive(Debug)]
pub struct SmallDisk {
    /// A process that only keeps the namespace alive.
    keeper: Child,
    folder: TempDir,
}

impl SmallDisk {
    /// Creates a disk of `mib` MiB.
    ///
    /// # Panics
    /// If the system forbids it; the message names the required permission.
    #[must_use]
    pub fn new(mib: u32) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !is_root() {
            command.arg("--map-root-user");
        }
        let script = format!("mount -t tmpfs -o size={mib}m hark \"$0\" && echo ready && exec cat");
        command.args(["sh", "-c", &script]).arg(folder.path());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut keeper = command.spawn().expect("unshare, of the package util-linux");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        if line != "ready\n" {
            let mut said = String::new();
            keeper
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut said)
                .unwrap();
            drop(keeper.wait());
            panic!(
                "this test mounts a tmpfs in a namespace of its own: run it as root, or let users make namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0); {said}"
            );
        }
        Self { keeper, folder }
    }

    /// Returns the prefix of a command that runs in the namespace.
    #[must_use]
    pub fn enter(&self) -> Vec<String> {
        let mut words = vec![
            "nsenter".to_owned(),
            format!("--target={}", self.keeper.id()),
            "--mount".into(),
        ];
        if !is_root() {
            words.extend(["--user".into(), "--preserve-credentials".into()]);
        }
        words
    }

    /// Returns the root of the disk inside of the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Fills the disk completely.
    ///
    /// # Panics
    /// If writing fails before the disk is full.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        let zeros = [0; 4096];
        loop {
            match file.write_all(&zeros) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Uses `mib` MiB of the disk.
    ///
    /// # Panics
    /// If less is free.
    pub fn take(&self, mib: u32) {
        let mut file = File::create(self.filler()).unwrap();
        for _ in 0..mib {
            file.write_all(&[0; 1 << 20]).unwrap();
        }
    }

    /// Frees the space used by [`Self::fill`] or [`Self::take`].
    ///
    /// # Panics
    /// If none is used.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        let path = self.folder.path().strip_prefix("/").unwrap();
        PathBuf::from(format!("/proc/{}/root", self.keeper.id()))
            .join(path)
            .join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

/// Returns whether this process may create namespaces without a user namespace.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}
