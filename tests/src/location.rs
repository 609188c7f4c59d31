//! Locations of the stores of a test: a folder for each server, or, in a test
//! that runs [`on_cluster`], a chat for each server on a cluster shared by the
//! tests of one process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::Nats;

tokio::task_local! {
    static ON_CLUSTER: ();
}

/// The location of one store.
#[derive(Debug, Clone)]
pub struct StoreLocation {
    path: PathBuf,
    is_small: bool,
    /// Removed after the last server that uses it.
    _folder: Option<Arc<TempDir>>,
}

impl StoreLocation {
    /// Returns an unused location.
    ///
    /// # Panics
    /// If a folder cannot be created.
    #[must_use]
    pub fn fresh() -> Self {
        if is_on_cluster() {
            return Self::on(Nats::shared());
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self {
            path: folder.path().join("store"),
            is_small: false,
            _folder: Some(Arc::new(folder)),
        }
    }

    /// Returns an unused chat on this cluster. It has a single stream: creating
    /// all 34 takes longer than most tests.
    #[must_use]
    pub fn on(nats: &Nats) -> Self {
        static CHATS: AtomicU32 = AtomicU32::new(0);
        let path = format!(
            "{}/chat{}",
            nats.url(),
            CHATS.fetch_add(1, Ordering::Relaxed)
        );
        Self {
            path: path.into(),
            is_small: true,
            _folder: None,
        }
    }

    /// Returns the same chat at other addresses.
    ///
    /// # Panics
    /// If it is not on a cluster.
    #[must_use]
    pub fn reached_by(&self, urls: &str) -> Self {
        Self {
            path: format!("{urls}/{}", self.chat()).into(),
            ..self.clone()
        }
    }

    /// Returns the name of the chat on its cluster.
    ///
    /// # Panics
    /// If it is not on a cluster.
    #[must_use]
    pub fn chat(&self) -> &str {
        let (_, chat) = self
            .path
            .to_str()
            .and_then(|url| url.rsplit_once('/'))
            .expect("a chat on a cluster");
        chat
    }

    /// Returns the value of `--store`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the arguments of `harkd`.
    #[must_use]
    pub fn args(&self) -> Vec<OsString> {
        let mut args = vec!["--store".into(), self.path.clone().into()];
        if self.is_small {
            args.push("--shards=1".into());
        }
        args
    }
}

impl<P: Into<PathBuf>> From<P> for StoreLocation {
    fn from(path: P) -> Self {
        Self {
            path: path.into(),
            is_small: false,
            _folder: None,
        }
    }
}

/// Runs a test whose servers store messages on a cluster. The guarantees are
/// the same.
pub async fn on_cluster(test: impl Future<Output = ()>) {
    ON_CLUSTER.scope((), test).await;
}

fn is_on_cluster() -> bool {
    ON_CLUSTER.try_with(|()| ()).is_ok()
}
