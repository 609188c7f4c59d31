//! Where the servers of a test keep their messages: each in a folder of its
//! own, or, where the test is run [`on_cluster`], each in a chat of its own on
//! a cluster that the tests of one process share.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::Nats;

tokio::task_local! {
    static ON_CLUSTER: ();
}

/// A place for one store.
#[derive(Debug, Clone)]
pub struct Place {
    path: PathBuf,
    is_small: bool,
    /// Removed after the last server that used it.
    _folder: Option<Arc<TempDir>>,
}

impl Place {
    /// One that nobody has used.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn fresh() -> Self {
        if is_on_cluster() {
            return Self::on(Nats::shared());
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { path: folder.path().join("store"), is_small: false, _folder: Some(Arc::new(folder)) }
    }

    /// A chat that nobody has used, on this cluster. It is spread over one
    /// stream alone: to make 34 of them takes longer than most tests.
    #[must_use]
    pub fn on(nats: &Nats) -> Self {
        static CHATS: AtomicU32 = AtomicU32::new(0);
        let path = format!("{}/chat{}", nats.url(), CHATS.fetch_add(1, Ordering::Relaxed));
        Self { path: path.into(), is_small: true, _folder: None }
    }

    /// The same chat, by other addresses.
    ///
    /// # Panics
    /// Where it is on no cluster.
    #[must_use]
    pub fn reached_by(&self, urls: &str) -> Self {
        Self { path: format!("{urls}/{}", self.chat()).into(), ..self.clone() }
    }

    /// The name of the chat on its cluster.
    ///
    /// # Panics
    /// Where it is on none.
    #[must_use]
    pub fn chat(&self) -> &str {
        let (_, chat) = self.path.to_str().and_then(|url| url.rsplit_once('/')).expect("a chat on a cluster");
        chat
    }

    /// As `--store` takes it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `harkd` is to be told.
    #[must_use]
    pub fn args(&self) -> Vec<OsString> {
        let mut args = vec!["--store".into(), self.path.clone().into()];
        if self.is_small {
            args.push("--shards=1".into());
        }
        args
    }
}

impl<P: Into<PathBuf>> From<P> for Place {
    fn from(path: P) -> Self {
        Self { path: path.into(), is_small: false, _folder: None }
    }
}

/// Runs a test whose servers keep their messages on a cluster. What it owes is
/// the same, but that a crash of the server loses the acknowledgements that are
/// younger than a second, whatever was answered since
/// ([`keeps_acks_in_order`]). `docs/PROTOCOL.md` permits that.
pub async fn on_cluster(test: impl Future<Output = ()>) {
    ON_CLUSTER.scope((), test).await;
}

/// Whether a kill loses no acknowledgement that is older than something that
/// was answered.
#[must_use]
pub fn keeps_acks_in_order() -> bool {
    !is_on_cluster()
}

fn is_on_cluster() -> bool {
    ON_CLUSTER.try_with(|()| ()).is_ok()
}
