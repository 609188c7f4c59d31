//! The process `harkd`: its command line, log, signals, and system limits.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use hark_protocol::UserName;
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::Layer;
use tracing_subscriber::prelude::*;

use crate::admin;
use crate::chat::Chat;
use crate::config::{Cli, LogFormat, Purpose, ServeArgs};
use crate::front::{MayWatch, Tls};
use crate::logging::{self, LineLimiter, Watchers};
use crate::metrics;
use crate::server::{self, ConnectionLimits};
use crate::store::Store;

/// The maximum number of threads for blocking work: disk reads, password hashes,
/// patterns. Each kind also has its own bound.
const BLOCKING_THREADS_MAX: usize = 16;

/// Open files reserved for the store: one for each segment, enough for 64 GiB in
/// segments of 64 MiB.
const STORE_FILES: usize = 1024;

/// Runs the command of the command line, by default the server, to its end.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(command) => admin::run(&cli.serve.store, command),
        None => serve(&cli.serve),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("harkd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &ServeArgs) -> anyhow::Result<()> {
    let watchers = Watchers::default();
    let limiter = start_logging(arguments, &watchers)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = run(arguments, &watchers) => result,
            never = limiter.keep_reporting() => match never {},
        }
    });
    limiter.report();
    result
}

async fn run(arguments: &ServeArgs, watchers: &Watchers) -> anyhow::Result<()> {
    arguments.tls.check(
        arguments.listen,
        arguments.http.has_proxy(),
        arguments.require_password,
    )?;
    let tls = arguments.tls.read()?;
    let place = arguments.store.place()?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %arguments.listen,
        tls = tls.is_some(),
        store = %place,
        "starting harkd"
    );
    let limits = within_files(arguments.limits(), raise_file_limit()?);
    let cannot_listen = || {
        format!(
            "cannot listen on {}; stop the other server or choose another address with --listen",
            arguments.listen
        )
    };
    let socket = bind(arguments.listen).with_context(cannot_listen)?;
    let rules = arguments.rules();
    let store = arguments
        .store
        .open(
            arguments.shard(),
            Purpose::Server {
                text_bytes_max: rules.text_bytes_max(),
            },
        )
        .await?;
    check_log_watcher(arguments, &*store).await?;
    check_admins(arguments, &*store).await?;
    let chat = Arc::new(Chat::new(Arc::clone(&store), rules));
    let (shutdown, reloads) = (shutdown_signal()?, certificate_reloads(tls.clone())?);
    // After the store is open, so that a connection is refused rather than left waiting.
    let listener = socket
        .listen(server::BACKLOG_MAX)
        .with_context(cannot_listen)?;
    let metrics = serve_metrics(arguments, &chat).await?;
    let settings = arguments.settings(watchers, tls);
    let (tls, plaintext) = (settings.tls.is_some(), !settings.tls_only);
    tracing::info!(tls, plaintext, address = %listener.local_addr()?, "listening");
    tokio::select! {
        () = server::run(listener, chat, settings, limits, shutdown) => {}
        never = reloads => match never {},
        never = metrics => match never {},
    }
    store
        .close()
        .await
        .context("cannot close the store; recently acknowledged messages may be delivered again")?;
    tracing::info!("stopped");
    Ok(())
}

/// Opens the listener of the metrics, if there is to be one, and serves it.
async fn serve_metrics(
    arguments: &ServeArgs,
    chat: &Arc<Chat>,
) -> anyhow::Result<impl Future<Output = Infallible> + use<>> {
    let listener = match arguments.metrics {
        None => None,
        Some(address) => {
            let listener = tokio::net::TcpListener::bind(address).await;
            let listener = listener.with_context(|| {
                format!("cannot serve metrics on {address}; choose another address with --metrics")
            })?;
            tracing::info!(address = %listener.local_addr()?, "serving metrics");
            Some(listener)
        }
    };
    let chat = Arc::clone(chat);
    Ok(async move {
        match listener {
            Some(listener) => metrics::serve(listener, chat).await,
            None => std::future::pending().await,
        }
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // Connections of a former server on this address may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Warns if the user that may watch the log cannot do so for lack of an account
/// or a password.
async fn check_log_watcher(arguments: &ServeArgs, store: &dyn Store) -> anyhow::Result<()> {
    let Some(MayWatch::User(user)) = &arguments.watch_logs else {
        return Ok(());
    };
    check_privileged(store, user, "log watcher").await?;
    Ok(())
}

/// Warns about admins without rights, for lack of an account or a password.
async fn check_admins(arguments: &ServeArgs, store: &dyn Store) -> anyhow::Result<()> {
    for user in arguments.admins() {
        if check_privileged(store, user, "admin").await? {
            tracing::info!(%user, "admin");
        }
    }
    Ok(())
}

/// Returns whether the account of a privileged user has a password, and warns if
/// not.
async fn check_privileged(store: &dyn Store, user: &UserName, role: &str) -> anyhow::Result<bool> {
    match store.account(user).await? {
        None => {
            tracing::warn!("{role} '{user}' has no account; create it with: harkd user add {user}")
        }
        Some(entry) if entry.password.is_none() => tracing::warn!(
            "{role} '{user}' has no password and therefore no rights; set one with: harkd user set-password {user}"
        ),
        Some(_) => return Ok(true),
    }
    Ok(false)
}

/// Starts the log on standard error and, if it may be watched, the layer of the
/// watchers. Each has its own levels. Returns the rate limiter of standard
/// error.
fn start_logging(arguments: &ServeArgs, watchers: &Watchers) -> anyhow::Result<LineLimiter> {
    let filter = logging::filter(&arguments.log)?;
    let limiter = LineLimiter::default();
    let log = tracing_subscriber::fmt::layer().with_writer(limiter.clone());
    let log = match arguments.log_format {
        LogFormat::Json => log.json().boxed(),
        LogFormat::Text => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            log.with_ansi(std::io::stderr().is_terminal() && !no_color)
                .boxed()
        }
    };
    let mut layers = vec![log.with_filter(filter).boxed()];
    if arguments.watch_logs.is_some() {
        layers.push(watchers.layer().boxed());
    }
    tracing_subscriber::registry().with(layers).init();
    Ok(limiter)
}

/// Raises the limit of open files as far as the system allows, since every
/// connection takes one, and returns the limit.
fn raise_file_limit() -> anyhow::Result<u64> {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => Ok(limit),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            rlimit::getrlimit(rlimit::Resource::NOFILE)
                .map(|(soft, _)| soft)
                .context("cannot get the limit of open files")
        }
    }
}

/// Reloads the certificate at every SIGHUP.
fn certificate_reloads(tls: Option<Tls>) -> anyhow::Result<impl Future<Output = Infallible>> {
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        while hang_up.recv().await.is_some() {
            let Some(tls) = tls.clone() else {
                tracing::info!("SIGHUP ignored: TLS is not configured");
                continue;
            };
            match tokio::task::spawn_blocking(move || tls.reload()).await {
                Ok(Ok(())) => tracing::info!("certificate reloaded"),
                Ok(Err(error)) => log_failed_reload(&error.into()),
                Err(error) => log_failed_reload(&error.into()),
            }
        }
        std::future::pending().await
    })
}

fn log_failed_reload(error: &anyhow::Error) {
    let error = format_args!("{error:#}");
    tracing::error!(%error, "cannot reload the certificate; the previous one stays in use");
}

/// Lowers the limit of connections if the system allows fewer open files.
fn within_files(limits: ConnectionLimits, files_max: u64) -> ConnectionLimits {
    let within = limits.within_files(
        usize::try_from(files_max).unwrap_or(usize::MAX),
        STORE_FILES,
    );
    if within.connections_max < limits.connections_max {
        let connections_max = within.connections_max;
        tracing::info!(
            files_max,
            connections_max,
            "connections limited by open files (ulimit -n)"
        );
    }
    within
}

/// Resolves at the first SIGTERM or SIGINT. The second ends the process.
fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // Not joined: a second signal may arrive at any time until the process ends.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        drop(stop);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("second signal: stopping immediately");
        std::process::exit(1);
    });
    // The signal drops the sender; no value is sent.
    Ok(async move { drop(stopped.await) })
}
