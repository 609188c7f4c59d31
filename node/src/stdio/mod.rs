//! A node on streams of bytes, with the clock of the system. It knows nothing of
//! messages.

mod driver;
#[cfg(unix)]
mod fds;
mod lines;

use std::io::{self, IsTerminal as _, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::thread::{self, Thread};
use std::time::Duration;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::machine::Machine;
use crate::node::Node;
use driver::Driver;
use lines::Lines;

/// The maximum length of a line, in bytes. A line that exceeds it by more than
/// 64 KiB is dropped with a warning.
pub const LINE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The maximum number of blocks that were read but not handled yet.
const BLOCKS_MAX: usize = 4;

/// Runs a node on stdin and stdout to the end of its input, with its log on
/// stderr (`RUST_LOG` sets its level, `warn` by default). This is a complete
/// `main`.
pub fn main<S: Default + 'static>(program: impl FnOnce(&Node<S>)) -> ExitCode {
    main_with(S::default(), program)
}

/// As [`main`], with this state instead of the default.
pub fn main_with<S: 'static>(state: S, program: impl FnOnce(&Node<S>)) -> ExitCode {
    let filter = std::env::var("RUST_LOG")
        .ok()
        .filter(|given| !given.is_empty());
    let filter = filter
        .and_then(|given| given.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    let log = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would report a broken stderr on stderr, and panic.
        .log_internal_errors(false);
    tracing_subscriber::registry()
        .with(log.with_filter(filter))
        .init();
    match run_on_stdio(state, program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the node has ended");
            ExitCode::FAILURE
        }
    }
}

#[cfg(unix)]
fn run_on_stdio<S: 'static>(state: S, program: impl FnOnce(&Node<S>)) -> io::Result<()> {
    use std::os::fd::AsFd as _;
    // Without the buffers of the standard library.
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let machine = Machine::with_state(state, program, rand::random());
    fds::run(Driver::new(machine, output.into()), input.into())
}

#[cfg(not(unix))]
fn run_on_stdio<S: 'static>(state: S, program: impl FnOnce(&Node<S>)) -> io::Result<()> {
    run_with(io::stdin(), io::stdout().lock(), state, program)
}

/// Runs a node on these streams to the end of its input.
///
/// The answers to all available input are written together, before the node
/// waits for more. At the end of the input, the node waits for sleeping tasks,
/// up to 10 s. A thread reads the input; it is abandoned if the output fails
/// first.
///
/// ```
/// # use hark_node::{Json, Node, Request};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)]
/// # struct Echo { echo: Json }
/// # fn program(node: &Node<()>) {
/// #     node.handle("echo", async |_, request: Request<Echo>| Ok(request.body));
/// # }
/// let input = br#"
/// {"src": "c1", "dest": "n1", "body": {"type": "init", "msg_id": 1, "node_id": "n1", "node_ids": ["n1"]}}
/// {"src": "c1", "dest": "n1", "body": {"type": "echo", "msg_id": 2, "echo": 1.50}}
/// "#;
/// let mut output = Vec::new();
/// hark_node::run(&input[..], &mut output, program)?;
/// assert!(output.ends_with(br#""body": {"type": "echo_ok", "echo": 1.50, "in_reply_to": 2, "msg_id": 1}}
/// "#));
/// # std::io::Result::Ok(())
/// ```
///
/// # Errors
/// The error of a stream. After a failed read, all lines before it are answered.
pub fn run<S: Default + 'static>(
    input: impl Read + Send + 'static,
    output: impl Write,
    program: impl FnOnce(&Node<S>),
) -> io::Result<()> {
    run_with(input, output, S::default(), program)
}

/// As [`run`], with this state instead of the default.
///
/// # Errors
/// As for [`run`].
pub fn run_with<S: 'static>(
    input: impl Read + Send + 'static,
    output: impl Write,
    state: S,
    program: impl FnOnce(&Node<S>),
) -> io::Result<()> {
    let mut driver = Driver::new(Machine::with_state(state, program, rand::random()), output);
    let node = thread::current();
    driver.machine.on_wake(move || node.unpark());
    let blocks = read_on_a_thread(input)?;
    let end = loop {
        match blocks.try_recv() {
            Ok(Ok(block)) => driver.take_lines(&block)?,
            Ok(Err(error)) => break Err(error),
            Err(TryRecvError::Disconnected) => break Ok(()),
            Err(TryRecvError::Empty) => {
                driver.flush()?;
                park(driver.time_left());
            }
        }
        driver.run_due();
    };
    driver.finish(|time| {
        park(Some(time));
        Ok(())
    })?;
    end
}

/// Waits for this time, or until there is input or a task was woken.
fn park(time: Option<Duration>) {
    match time {
        Some(time) => thread::park_timeout(time),
        None => thread::park(),
    }
}

type Block = io::Result<Vec<u8>>;

/// Reads blocks of whole lines on another thread, which unparks this one.
fn read_on_a_thread(input: impl Read + Send + 'static) -> io::Result<Receiver<Block>> {
    let (sender, blocks) = mpsc::sync_channel(BLOCKS_MAX);
    let node = thread::current();
    thread::Builder::new()
        .name("input".into())
        .spawn(move || read(input, sender, &node))?;
    Ok(blocks)
}

fn read(mut input: impl Read, blocks: SyncSender<Block>, node: &Thread) {
    let mut lines = Lines::new(LINE_BYTES_MAX);
    loop {
        let block = match lines.read(&mut input) {
            Ok(None) => break,
            Ok(Some([])) => continue,
            Ok(Some(block)) => Ok(block.to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let is_over = block.is_err();
        // Without a receiver the node has ended.
        if blocks.send(block).is_err() || is_over {
            break;
        }
        node.unpark();
    }
    drop(blocks);
    node.unpark();
}
