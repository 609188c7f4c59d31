//! `harkd`, the Hark chat server.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use hark_server::admin;
use hark_server::chat::Chat;
use hark_server::config::{Cli, LogFormat, ServeArgs};
use hark_server::front::{MayWatch, Tls};
use hark_server::logging::{Bound, Watchers};
use hark_server::server::{self, Limits};
use hark_server::store::{LIBRARY_LOGS, Store};
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer};

/// Connections that wait to be accepted, at most, where the system has so many
/// (`net.core.somaxconn`). When all come back after a restart, those for whom
/// there is no room try again after 1 s, then 3 s, 7 s, 15 s and so on.
const UNACCEPTED_MAX: u32 = 65_535;

/// Messages are made on one thread and end on another, for which the system's
/// allocator takes a lock each time. A thread of its own gives memory back.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Threads for what blocks: reads of the disk, passwords, patterns. Each of
/// these is bounded by itself as well.
const BLOCKING_THREADS_MAX: usize = 16;

/// Open files that are kept for the store: one for each segment of 64 MiB, so many
/// for 64 GiB.
const STORE_FILES: usize = 1024;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(command) => admin::run(&cli.serve.store, command),
        None => serve(&cli.serve),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("harkd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &ServeArgs) -> anyhow::Result<()> {
    let watchers = Watchers::default();
    let bound = start_logging(arguments, &watchers)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(async {
        tokio::select! {
            done = run(arguments, &watchers) => done,
            never = bound.keep_reporting() => match never {},
        }
    });
    bound.report();
    done
}

async fn run(arguments: &ServeArgs, watchers: &Watchers) -> anyhow::Result<()> {
    arguments.exposure.check(arguments.listen, arguments.require_password)?;
    let tls = arguments.exposure.tls()?;
    let limits = within_files(arguments.limits(), raise_file_limit()?);
    let cannot_listen = || {
        format!(
            "cannot listen on {}; is another server there? choose another with --listen",
            arguments.listen
        )
    };
    let socket = bind(arguments.listen).with_context(cannot_listen)?;
    let rules = arguments.rules();
    let store = arguments.store.open(arguments.shard(), rules.text_bytes_max()).await?;
    check_log_watcher(arguments, &*store).await?;
    check_admins(arguments, &*store).await?;
    let chat = Arc::new(Chat::new(Arc::clone(&store), rules));
    let (stop, renewals) = (stop_signal()?, renewals(tls.clone())?);
    // Not before the store is open: nobody connects to a server that does not answer.
    let listener = socket.listen(UNACCEPTED_MAX).with_context(cannot_listen)?;
    let settings = arguments.settings(watchers, tls);
    if settings.tls.is_some() {
        tracing::info!(plain_text = if settings.tls_only { "refused" } else { "taken" }, "speaking TLS");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), address = %listener.local_addr()?, "listening");
    tokio::select! {
        () = server::run(listener, chat, settings, limits, stop) => {}
        never = renewals => match never {},
    }
    store.close().await.context("what was acknowledged lately may come again")?;
    tracing::info!("stopped");
    Ok(())
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Where another server has just ended, its connections may not be over.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Who may watch the log proves it by a password.
async fn check_log_watcher(arguments: &ServeArgs, store: &dyn Store) -> anyhow::Result<()> {
    let Some(MayWatch::User(user)) = &arguments.watch_logs else { return Ok(()) };
    match store.account(user).await? {
        None => {
            tracing::warn!(%user, "who may watch the log does not exist; make the account with harkd user add");
        }
        Some(entry) if entry.password.is_none() => {
            tracing::warn!(%user, "who may watch the log has no password, and cannot until it has one; set it with harkd user set-password");
        }
        Some(_) => {}
    }
    Ok(())
}

/// An admin is who has entered its password: where there is none to enter,
/// nobody has the rights.
async fn check_admins(arguments: &ServeArgs, store: &dyn Store) -> anyhow::Result<()> {
    for user in &arguments.admins {
        match store.account(user).await? {
            None => {
                tracing::warn!(%user, "an admin does not exist; make the account with harkd user add");
            }
            Some(entry) if entry.password.is_none() => {
                tracing::warn!(%user, "an admin has no password, and no rights until it has one; set it with harkd user set-password");
            }
            Some(_) => tracing::info!(%user, "an admin"),
        }
    }
    Ok(())
}

/// The log on standard error, and beside it the one that is watched, each with
/// levels of its own. Yields the bound of the former.
fn start_logging(arguments: &ServeArgs, watchers: &Watchers) -> anyhow::Result<Bound> {
    // The later one counts: a filter that names a library still gets it.
    let filter = EnvFilter::try_new(format!("{},{}", LIBRARY_LOGS.join(","), arguments.log))
        .with_context(|| format!("--log {:?} is neither a level nor a filter", arguments.log))?;
    let bound = Bound::default();
    let log = tracing_subscriber::fmt::layer().with_writer(bound.clone());
    let log = match arguments.log_format {
        LogFormat::Json => log.json().boxed(),
        LogFormat::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            log.with_ansi(std::io::stderr().is_terminal() && !plain).boxed()
        }
    };
    let mut layers = vec![log.with_filter(filter).boxed()];
    if arguments.watch_logs.is_some() {
        layers.push(watchers.layer().boxed());
    }
    tracing_subscriber::registry().with(layers).init();
    Ok(bound)
}

/// Every connection is an open file: as many as the system lets us have.
fn raise_file_limit() -> anyhow::Result<u64> {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => Ok(limit),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            rlimit::getrlimit(rlimit::Resource::NOFILE)
                .map(|(soft, _)| soft)
                .context("no limit of open files")
        }
    }
}

/// Reads the certificate again at every SIGHUP, where there is one.
fn renewals(tls: Option<Tls>) -> anyhow::Result<impl Future<Output = Infallible>> {
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        while hang_up.recv().await.is_some() {
            let Some(tls) = tls.clone() else {
                tracing::info!("SIGHUP: there is no certificate to read again, and nothing else is");
                continue;
            };
            match tokio::task::spawn_blocking(move || tls.read_again()).await.context("it was not read") {
                Ok(Ok(())) => tracing::info!("the certificate and its key were read again"),
                Ok(Err(error)) => keep_certificate(&error.into()),
                Err(error) => keep_certificate(&error),
            }
        }
        std::future::pending().await
    })
}

fn keep_certificate(error: &anyhow::Error) {
    tracing::error!("the certificate stays as it was: {error:#}");
}

/// The limits, where so many files may be open.
fn within_files(limits: Limits, files_max: u64) -> Limits {
    let within = limits.within_files(usize::try_from(files_max).unwrap_or(usize::MAX), STORE_FILES);
    if within.connections_max < limits.connections_max {
        let connections = within.connections_max;
        tracing::info!(
            files_max,
            connections,
            "the system allows fewer open files than --max-connections needs (ulimit -n)"
        );
    }
    within
}

/// Resolves at the first SIGTERM or SIGINT. The second ends the process.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // It lives as long as the process, since a second signal may come at any time.
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
        tracing::warn!("stopping at once");
        std::process::exit(1);
    });
    // The sender is dropped at the signal; there is no value to receive.
    Ok(async move { drop(stopped.await) })
}
