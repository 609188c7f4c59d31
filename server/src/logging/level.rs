//! The levels of the log on standard error, which can change at run time.

use anyhow::Context as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Filter;
use tracing_subscriber::{Registry, reload};

/// The current filter. Clones share it.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<Targets, Registry>);

impl LogLevel {
    /// Returns a filter for a layer, and the handle that changes it.
    ///
    /// # Errors
    /// As [`super::filter`].
    pub fn new(directives: &str) -> anyhow::Result<(impl Filter<Registry> + use<>, Self)> {
        let (filter, handle) = reload::Layer::new(super::filter(directives)?);
        Ok((filter, Self(handle)))
    }

    /// Changes the filter.
    ///
    /// # Errors
    /// As [`super::filter`]; the former filter stays in use.
    pub fn set(&self, directives: &str) -> anyhow::Result<()> {
        let filter = super::filter(directives)?;
        self.0.reload(filter).context("the log has ended")
    }
}
