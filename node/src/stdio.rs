//! A node on streams of bytes: its lines come from one and go to another, and
//! its time is the machine's. It knows nothing of what the lines say.

use std::io::{self, IsTerminal as _, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::node::Node;

/// The longest line, in bytes. One that is longer by more than 64 KiB is left
/// out, and the log says so.
pub const LINE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What is read at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// Blocks that were read and not handled, at most: beyond that the input waits.
const BLOCKS_MAX: usize = 4;

/// What was sent is written when it is so much, even if more input is there.
const WRITE_BYTES: usize = 64 * 1024;

/// What sleeps at the end of the input is waited for so long.
const END_WAIT_MAX: Duration = Duration::from_secs(10);

/// So many calls that are open at once are a burst, whose memory is given back
/// when they have ended.
const BURST_CALLS: usize = 1024;

/// Runs a node on stdin and stdout to the end of its input, with its log on
/// stderr (`RUST_LOG` says how much, `warn` unless told). This is a whole
/// `main`.
pub fn main<S: Default + 'static>(program: impl FnOnce(&Node<S>)) -> ExitCode {
    main_with(S::default(), program)
}

/// As [`main`], with this state in place of the default.
pub fn main_with<S: 'static>(state: S, program: impl FnOnce(&Node<S>)) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::WARN.into())
        .from_env_lossy();
    let is_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(is_terminal)
        // It says on stderr that stderr is broken, and panics.
        .log_internal_errors(false)
        .init();
    match run_with(io::stdin(), io::stdout().lock(), state, program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the node has ended");
            ExitCode::FAILURE
        }
    }
}

/// Runs a node on these streams to the end of its input.
///
/// All that is sent in answer to input that is there is written in one go, and
/// before the node waits for more. At the end of the input, what still sleeps is
/// waited for, up to 10 s. A thread reads the input; it is left behind where
/// the output fails first.
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
/// What the streams say. After a failed read, all that had come is answered.
pub fn run<S: Default + 'static>(
    input: impl Read + Send + 'static,
    output: impl Write,
    program: impl FnOnce(&Node<S>),
) -> io::Result<()> {
    run_with(input, output, S::default(), program)
}

/// As [`run`], with this state in place of the default.
///
/// # Errors
/// As for [`run`].
pub fn run_with<S: 'static>(
    input: impl Read + Send + 'static,
    mut output: impl Write,
    state: S,
    program: impl FnOnce(&Node<S>),
) -> io::Result<()> {
    let started = Instant::now();
    let mut machine = Machine::with_state(state, program, rand::random());
    machine.unpark_this_thread();
    let blocks = read_on_a_thread(input)?;
    let mut buffer = Vec::new();
    let mut burst = Burst::default();
    let end = loop {
        match blocks.try_recv() {
            Ok(Ok(block)) => take_block(&mut machine, &block, started, &mut output, &mut buffer)?,
            Ok(Err(error)) => break Err(error),
            Err(TryRecvError::Disconnected) => break Ok(()),
            Err(TryRecvError::Empty) => {
                flush(&mut machine, &mut output, &mut buffer)?;
                if burst.has_ebbed(machine.pending()) {
                    // Nothing is to be done now.
                    hark_heap::give_back();
                }
                park_until(machine.next_timeout(), started);
            }
        }
        burst.note(machine.pending());
        machine.handle_timeout(started.elapsed());
    };
    finish(&mut machine, started, &mut output, &mut buffer)?;
    end
}

/// Handles whole lines.
fn take_block(
    machine: &mut Machine,
    block: &[u8],
    started: Instant,
    output: &mut impl Write,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    let mut now = started.elapsed();
    for line in block.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        machine.handle_line(now, line);
        if machine.output_bytes() >= WRITE_BYTES {
            write(machine, output, buffer)?;
            // Who reads the output may have taken its time.
            now = started.elapsed();
        }
    }
    Ok(())
}

/// What can be answered without further input.
fn finish(
    machine: &mut Machine,
    started: Instant,
    output: &mut impl Write,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    let ended = started.elapsed();
    machine.handle_end(ended);
    while let Some(next) = machine.next_timeout()
        && next <= ended + END_WAIT_MAX
    {
        flush(machine, output, buffer)?;
        park_until(Some(next), started);
        machine.handle_timeout(started.elapsed());
    }
    flush(machine, output, buffer)
}

fn write(machine: &mut Machine, output: &mut impl Write, buffer: &mut Vec<u8>) -> io::Result<()> {
    machine.take_output(buffer);
    output.write_all(buffer)?;
    buffer.clear();
    buffer.shrink_to(2 * WRITE_BYTES);
    Ok(())
}

fn flush(machine: &mut Machine, output: &mut impl Write, buffer: &mut Vec<u8>) -> io::Result<()> {
    write(machine, output, buffer)?;
    output.flush()
}

/// The calls of a burst whose memory was not given back; 0 without one.
#[derive(Default)]
struct Burst(usize);

impl Burst {
    fn note(&mut self, open: usize) {
        if open >= BURST_CALLS {
            self.0 = self.0.max(open);
        }
    }

    /// Whether three quarters of it are over. What is left counts as the burst
    /// from then on, down to the last call, as a few that are scattered keep many
    /// pages.
    fn has_ebbed(&mut self, open: usize) -> bool {
        let has_ebbed = self.0 > 0 && open <= self.0 / 4;
        if has_ebbed {
            self.0 = open;
        }
        has_ebbed
    }
}

/// Until this time, or until there is input or a task was woken.
fn park_until(time: Option<Duration>, started: Instant) {
    match time {
        Some(time) => thread::park_timeout(time.saturating_sub(started.elapsed())),
        None => thread::park(),
    }
}

type Block = io::Result<Vec<u8>>;

/// Reads blocks of whole lines on a thread of its own, which unparks this one.
fn read_on_a_thread(input: impl Read + Send + 'static) -> io::Result<Receiver<Block>> {
    let (sender, blocks) = mpsc::sync_channel(BLOCKS_MAX);
    let reader = thread::current();
    thread::Builder::new().name("input".into()).spawn(move || read(input, sender, &reader))?;
    Ok(blocks)
}

fn read(mut input: impl Read, blocks: SyncSender<Block>, reader: &Thread) {
    let mut lines = Lines::new(LINE_BYTES_MAX);
    loop {
        let block = match lines.read(&mut input) {
            Ok(None) => break,
            Ok(Some(block)) if block.is_empty() => continue,
            Ok(Some(block)) => Ok(block),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let is_over = block.is_err();
        // The node is gone where nobody receives.
        if blocks.send(block).is_err() || is_over {
            break;
        }
        reader.unpark();
    }
    drop(blocks);
    reader.unpark();
}

/// Cuts what is read after the last whole line.
struct Lines {
    line_bytes_max: usize,
    /// The beginning of a line.
    partial: Vec<u8>,
    /// The rest of a line that is too long is left out.
    is_skipping: bool,
    is_over: bool,
}

impl Lines {
    fn new(line_bytes_max: usize) -> Self {
        Self { line_bytes_max, partial: Vec::new(), is_skipping: false, is_over: false }
    }

    /// The next whole lines, perhaps none; at the end of the input what is left
    /// of it, and then `None`.
    fn read(&mut self, input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
        if self.is_over {
            return Ok(None);
        }
        let start = self.partial.len();
        self.partial.resize(start + READ_BYTES, 0);
        let count = input.read(self.partial.get_mut(start..).unwrap_or_default());
        self.partial.truncate(start + count.as_ref().map_or(0, |count| *count));
        if count? == 0 {
            self.is_over = true;
            return Ok(Some(std::mem::take(&mut self.partial)));
        }
        let fresh = self.partial.get(start..).unwrap_or_default();
        match fresh.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => Ok(Some(self.take_lines(start + end + 1))),
            None => {
                self.bound();
                Ok(Some(Vec::new()))
            }
        }
    }

    /// Takes the whole lines, which end at `end`.
    fn take_lines(&mut self, end: usize) -> Vec<u8> {
        let rest = self.partial.split_off(end);
        let mut lines = std::mem::replace(&mut self.partial, rest);
        if std::mem::take(&mut self.is_skipping) {
            let first_end = lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| end + 1);
            lines.drain(..first_end);
        }
        lines
    }

    fn bound(&mut self) {
        if self.partial.len() > self.line_bytes_max {
            tracing::warn!(self.line_bytes_max, "a line is too long, and is left out");
            self.is_skipping = true;
        }
        if self.is_skipping {
            self.partial = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of `input` where lines are bounded and come in pieces.
    fn left_of(input: &[u8], line_bytes_max: usize, piece: usize) -> Vec<u8> {
        let mut lines = Lines::new(line_bytes_max);
        let mut left = Vec::new();
        let mut pieces = input.chunks(piece);
        while let Some(block) = lines.read(&mut pieces.next().unwrap_or_default()).unwrap() {
            left.extend(block);
        }
        left
    }

    #[test]
    fn lines_are_the_same_in_whatever_pieces_they_come() {
        let input = b"first\n\nsecond\r\nthe last has no end";
        for piece in 1..=input.len() {
            assert_eq!(left_of(input, 100, piece), input, "pieces of {piece}");
        }
    }

    #[test]
    fn memory_is_given_back_down_to_the_last_call_of_a_burst_and_not_without_one() {
        let mut burst = Burst::default();
        let mut ebbs = |open: &[usize]| -> Vec<usize> {
            let has_ebbed = |open: &usize| {
                burst.note(*open);
                burst.has_ebbed(*open)
            };
            open.iter().copied().filter(has_ebbed).collect()
        };
        assert_eq!(ebbs(&[0, BURST_CALLS - 1, 0, 7, 0]), [0; 0]);
        let open = [100_000, 30_000, 25_000, 900, 300, 225, 900, 50, 1, 0, 0, 900, 0];
        assert_eq!(ebbs(&open), [25_000, 900, 225, 50, 1, 0]);
    }

    #[test]
    fn a_line_that_is_too_long_is_left_out_alone() {
        let long = "x".repeat(50);
        for piece in 1..=8 {
            for (input, expected) in [
                (format!("first\n{long}\nlast\n"), "first\nlast\n"),
                (format!("{long}\n{long}\nlast"), "last"),
                (format!("first\n{long}"), "first\n"),
            ] {
                let left = left_of(input.as_bytes(), 10, piece);
                assert_eq!(String::from_utf8(left).unwrap(), expected, "pieces of {piece}");
            }
        }
    }
}
