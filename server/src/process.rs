//! The process `harkd`: its command line, log, signals, and system limits.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::{Arc, Weak};
use std::time::Instant;

use anyhow::Context;
use hark_protocol::UserName;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::Layer;
use tracing_subscriber::prelude::*;

use crate::admin;
use crate::administration::{AdminSlot, AdminSocket, Administration, ReloadRequest};
use crate::bans::Bans;
use crate::chat::Chat;
use crate::config::{
    Configuration, ConfigurationError, ListenAddress, LogFormat, Purpose, ServeArgs,
};
use crate::front::MayWatch;
use crate::listener::{BoundSocket, Listener, Listeners};
use crate::logging::{LineLimiter, LogLevel, Watchers};
use crate::metrics;
use crate::reload::Reloader;
use crate::server::{ConnectionLimits, Server};
use crate::signals::{Signals, shutdown_signal};
use crate::store::{Peer, Store};
use crate::supervisor::Supervisor;

/// The maximum number of threads for blocking work: disk reads, password hashes,
/// patterns. Each kind also has its own bound.
const BLOCKING_THREADS_MAX: usize = 16;

/// Open files reserved for the store: one for each segment, enough for 64 GiB in
/// segments of 64 MiB.
const STORE_FILES: usize = 1024;

/// The log of the process.
#[derive(Debug)]
struct ProcessLog {
    limiter: LineLimiter,
    level: LogLevel,
    watchers: Watchers,
}

/// Runs the command of the command line, by default the server, to its end.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut configuration = match Configuration::load(&arguments) {
        Ok(configuration) => configuration,
        Err(ConfigurationError::Usage(error)) => error.exit(),
        Err(error) => return failed(&error.into()),
    };
    let result = match configuration.command.take() {
        Some(command) => admin::run(&configuration.serve.store, command),
        None if configuration.serve.check => check(&configuration),
        None => serve(arguments, configuration),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("harkd: {error:#}");
    ExitCode::FAILURE
}

/// Prints the effective configuration, and checks it.
fn check(configuration: &Configuration) -> anyhow::Result<()> {
    admin::print(format_args!("{configuration}"))?;
    configuration.serve.check()?;
    configuration.serve.tls.read()?;
    admin::print(format_args!("# the configuration is valid"))
}

fn serve(arguments: Vec<OsString>, configuration: Configuration) -> anyhow::Result<()> {
    let log = start_logging(&configuration.serve)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = run(arguments, configuration, &log) => result,
            never = log.limiter.keep_reporting() => match never {},
        }
    });
    log.limiter.report();
    result
}

async fn run(
    arguments: Vec<OsString>,
    configuration: Configuration,
    log: &ProcessLog,
) -> anyhow::Result<()> {
    let settings = &configuration.serve;
    // First, so that no signal ends the process while it opens the store.
    let (signals, supervisor) = (Signals::install()?, Supervisor::of_process());
    settings.check()?;
    let tls = settings.tls.read()?;
    log_start(&configuration)?;
    let files_max = raise_file_limit()?;
    let limits = within_files(settings.limits(), files_max);
    let sockets = bind_all(settings)?;
    supervisor.starting();
    let rules = settings.rules();
    let purpose = Purpose::Server {
        text_bytes_max: rules.text_bytes_max(),
    };
    let store = settings.store.open(settings.shard(), purpose).await?;
    check_privileges(settings, &*store).await?;
    let chat = Arc::new(Chat::new(Arc::clone(&store), rules));
    let fronts = settings.settings(&log.watchers, tls.clone());
    let folder = settings.store.folder()?;
    let bans = Arc::new(Bans::of_store(folder.as_deref())?);
    let slot = AdminSlot::default();
    let (server_bans, server_slot) = (Arc::clone(&bans), slot.clone());
    let server =
        Server::with_administration(Arc::clone(&chat), fronts, limits, server_bans, server_slot);
    let (reload, requests) = mpsc::channel(1);
    let admin = Arc::new(Administration {
        chat: Arc::clone(&chat),
        store: Arc::clone(&store),
        folder,
        socket: settings.store.admin_socket()?,
        server: Arc::clone(&server),
        bans,
        log: log.level.clone(),
        reload,
        drain: Arc::default(),
        started: Instant::now(),
        backups: Arc::new(Semaphore::new(1)),
        checks: Arc::new(Semaphore::new(1)),
        passwords: Semaphore::new(1),
    });
    slot.set(&admin);
    store.set_peer(Arc::downgrade(&admin) as Weak<dyn Peer>);
    let shutdown = shutdown_signal(Arc::clone(&admin.drain))?;
    // After the store is open, so that a connection is refused rather than left waiting.
    let listeners = listen_all(sockets, settings)?;
    let metrics = serve_metrics(settings, &chat).await?;
    let administrators = Administrators::serve(&admin, slot);
    supervisor.ready();
    let reloader = Reloader {
        arguments,
        configuration,
        files_max,
        chat,
        server: Arc::clone(&server),
        tls,
        log: log.level.clone(),
    };
    tokio::select! {
        () = Arc::clone(&server).run(listeners, shutdown) => {}
        never = reload_on_request(signals, requests, reloader, &supervisor) => match never {},
        never = supervisor.keep_reporting(server) => match never {},
        never = metrics => match never {},
    }
    supervisor.closing();
    administrators.end().await;
    close(&*store).await
}

async fn close(store: &dyn Store) -> anyhow::Result<()> {
    store
        .close()
        .await
        .context("cannot close the store; recently acknowledged messages may be delivered again")?;
    tracing::info!("stopped");
    Ok(())
}

/// Opens the listener of the metrics, if there is to be one, and serves it.
async fn serve_metrics(
    settings: &ServeArgs,
    chat: &Arc<Chat>,
) -> anyhow::Result<impl Future<Output = Infallible> + use<>> {
    let listener = match settings.metrics {
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

/// Logs what is served, and by which settings.
fn log_start(configuration: &Configuration) -> anyhow::Result<()> {
    let settings = &configuration.serve;
    let listen: Vec<_> = settings.addresses().map(ToString::to_string).collect();
    let file = configuration.file.as_deref();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = listen.join(","),
        tls = settings.tls.tls_cert.is_some(),
        store = %settings.store.place()?,
        config = file.map(|file| tracing::field::display(file.display())),
        "starting harkd"
    );
    Ok(())
}

/// Reloads the configuration at every SIGHUP, and when an administrator asks for it.
async fn reload_on_request(
    mut signals: Signals,
    mut requests: mpsc::Receiver<ReloadRequest>,
    mut reloader: Reloader,
    supervisor: &Supervisor,
) -> Infallible {
    loop {
        let request = tokio::select! {
            () = signals.reload_requested() => None,
            Some(request) = requests.recv() => Some(request),
        };
        supervisor.reloading();
        // It logs its result, too.
        let reloaded = tokio::task::block_in_place(|| reloader.reload());
        if let Some(request) = request {
            // The administrator may have gone.
            drop(request.send(reloaded));
        }
        supervisor.ready();
    }
}

/// The task that serves administrators.
struct Administrators {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Administrators {
    /// Opens the socket, if there is to be one. The server also runs without it.
    fn serve(admin: &Administration, slot: AdminSlot) -> Self {
        let stop = CancellationToken::new();
        let opened = admin.socket.as_deref().map(AdminSocket::open);
        let task = match opened {
            None => None,
            Some(Ok(socket)) => Some(tokio::spawn(socket.serve(slot, stop.clone()))),
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot open the socket for harkd admin");
                None
            }
        };
        Self { stop, task }
    }

    /// Ends the socket when the calls in progress have ended.
    async fn end(self) {
        self.stop.cancel();
        if let Some(task) = self.task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the task of the administrators failed");
        }
    }
}

/// Binds every address, so that one in use is reported before the store is opened.
fn bind_all(settings: &ServeArgs) -> anyhow::Result<Vec<BoundSocket>> {
    let bind = |address| BoundSocket::bind(address).with_context(|| cannot_listen(address));
    settings.addresses().map(bind).collect()
}

fn listen_all(sockets: Vec<BoundSocket>, settings: &ServeArgs) -> anyhow::Result<Listeners> {
    let listen = |socket: BoundSocket| -> anyhow::Result<Listener> {
        let address = socket.address().clone();
        let listener = socket
            .listen(settings.tls.is_tls_only(&address))
            .with_context(|| cannot_listen(&address))?;
        let tls = settings.tls.tls_cert.is_some() && matches!(address, ListenAddress::Tcp(_));
        let plaintext = !listener.refuses_plaintext();
        tracing::info!(tls, plaintext, address = %listener.local_address()?, "listening");
        Ok(listener)
    };
    let listeners: anyhow::Result<_> = sockets.into_iter().map(listen).collect();
    Ok(Listeners::new(listeners?))
}

fn cannot_listen(address: &ListenAddress) -> String {
    format!(
        "cannot listen on {address}; stop the other server or choose another address with --listen"
    )
}

/// Warns about users without the rights that the settings give them, for lack of an account
/// or a password.
async fn check_privileges(settings: &ServeArgs, store: &dyn Store) -> anyhow::Result<()> {
    if let Some(MayWatch::User(user)) = &settings.watch_logs {
        check_privileged(store, user, "log watcher").await?;
    }
    for user in settings.admins() {
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
/// watchers. Each has its own levels.
fn start_logging(settings: &ServeArgs) -> anyhow::Result<ProcessLog> {
    let (filter, level) = LogLevel::new(&settings.log)?;
    let (limiter, watchers) = (LineLimiter::default(), Watchers::default());
    let log = tracing_subscriber::fmt::layer().with_writer(limiter.clone());
    let log = match settings.log_format {
        LogFormat::Json => log.json().boxed(),
        LogFormat::Text => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            log.with_ansi(std::io::stderr().is_terminal() && !no_color)
                .boxed()
        }
    };
    let mut layers = vec![log.with_filter(filter).boxed()];
    if settings.watch_logs.is_some() {
        layers.push(watchers.layer().boxed());
    }
    tracing_subscriber::registry().with(layers).init();
    Ok(ProcessLog {
        limiter,
        level,
        watchers,
    })
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

/// Lowers the limit of connections if the system allows fewer open files.
pub(crate) fn within_files(limits: ConnectionLimits, files_max: u64) -> ConnectionLimits {
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
