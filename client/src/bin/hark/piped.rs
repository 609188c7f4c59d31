//! Commands on stdin, one per line, without a terminal: one line of output for
//! each, in order, with messages in between.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hark_client::{Event, Events, Handle, LinkState, RequestError};
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_protocol::{Code, Refusal, UserName};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::{mpsc, watch};

use crate::command::{self, Command, Done, Secrets};
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::text::escape;
use crate::{lines, output, setup, signals};

/// Largest number of commands whose answers are pending.
const ANSWERS_MAX: usize = 1024;

/// Largest line in bytes, above the largest frame of any server.
const LINE_BYTES_MAX: u64 = FRAME_BYTES_MAX as u64;

/// Reads commands until the end of stdin, and waits for all the answers.
pub(crate) async fn run(settings: &Settings) -> Result<Exit, Failure> {
    let secrets = setup::receiving(settings, settings.user())?;
    let stop = signals::stop()?;
    let (handle, events) = setup::client(settings)?;
    let (answers, answers_in) = mpsc::channel(ANSWERS_MAX);
    let reader = Reader {
        handle: handle.clone(),
        secrets,
        as_user: settings.as_user.clone(),
        answers,
    };
    let mut printer = Printer {
        events,
        exit: Exit::Done,
        behind: None,
    };
    let work = async {
        let (read, printed) = tokio::join!(
            reader.read(BufReader::new(tokio::io::stdin())),
            printer.print(answers_in)
        );
        printed?;
        printer.catch_up(settings.timeout).await?;
        read
    };
    tokio::select! {
        ended = work => ended?,
        never = close_on_failure(settings, &handle, stop) => match never {},
    }
    handle.close(settings.timeout).await;
    Ok(printer.exit)
}

/// Closes the client when the server was unreachable for too long or a signal
/// arrives; every command then has its outcome at once. Never returns.
async fn close_on_failure(
    settings: &Settings,
    handle: &Handle,
    mut stop: signals::Stop,
) -> Infallible {
    tokio::select! {
        reason = unreachable(handle.link(), settings.timeout) => {
            eprintln!("hark: cannot reach {}: {}", settings.server, escape(&reason));
        }
        () = stop.received() => {}
    }
    handle.close(Duration::ZERO).await;
    std::future::pending().await
}

/// Waits until the link was down for `timeout` without interruption, or fails
/// permanently, and returns the reason.
async fn unreachable(mut link: watch::Receiver<LinkState>, timeout: Duration) -> String {
    let mut reason = "no answer".to_owned();
    loop {
        let is_down = |state: &LinkState| !state.is_up();
        let was_closed = link.wait_for(is_down).await.is_err();
        let back = tokio::time::timeout(timeout, is_back(&mut link, &mut reason)).await;
        if was_closed || back != Ok(true) {
            return reason;
        }
    }
}

/// Waits until the link is up, or fails permanently, and stores the reason of
/// failures.
async fn is_back(link: &mut watch::Receiver<LinkState>, reason: &mut String) -> bool {
    loop {
        match &*link.borrow_and_update() {
            LinkState::Up { .. } => return true,
            LinkState::Down {
                reason: why,
                is_permanent,
                ..
            } => {
                why.clone_into(reason);
                if *is_permanent {
                    return false;
                }
            }
            LinkState::Connecting | LinkState::Closed => {}
        }
        if link.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The part that turns lines into requests.
struct Reader {
    handle: Handle,
    secrets: Secrets,
    /// The user to log in as first.
    as_user: Option<UserName>,
    answers: mpsc::Sender<Answer>,
}

/// The pending outcome of a command.
struct Answer {
    /// The receiving user after a successful `connect`.
    receiver: Option<UserName>,
    outcome: BoxFuture<'static, Result<Done, RequestError>>,
}

impl Reader {
    /// Logs in as the user of `--as`, then reads until the end of the input, or until the
    /// client is closed.
    async fn read(mut self, mut input: impl AsyncBufRead + Unpin) -> Result<(), Failure> {
        let mut link = self.handle.link();
        let is_closed = |state: &LinkState| *state == LinkState::Closed;
        if let Some(user) = self.as_user.take() {
            let (handle, secrets) = (self.handle.clone(), self.secrets.clone());
            self.secrets.login = Some(user.clone());
            command::execute(&handle, Command::Login(user), secrets).await?;
        }
        loop {
            let line = tokio::select! {
                line = next_line(&mut input) => line.map_err(|error| Failure::local(format!("stdin: {error}")))?,
                _ = link.wait_for(is_closed) => return Ok(()),
            };
            let Some(line) = line else {
                return Ok(());
            };
            let is_over = match parse_line(&line) {
                None => false,
                Some(Ok(command)) => {
                    let is_over = command == Command::Quit;
                    self.ask(command).await || is_over
                }
                Some(Err(refusal)) => self.put(None, Err(refusal.into())).await,
            };
            if is_over {
                return Ok(());
            }
        }
    }

    /// Sends a command and queues its pending answer for the printer. Returns
    /// whether the printer has ended.
    async fn ask(&mut self, command: Command) -> bool {
        let receiver = match &command {
            Command::Connect(user) => Some(user.clone()),
            _ => None,
        };
        let login = match &command {
            Command::Login(user) | Command::Connect(user) => Some(user.clone()),
            Command::Disconnect => None,
            _ => self.secrets.login.clone(),
        };
        let (handle, secrets) = (self.handle.clone(), self.secrets.for_command(&command));
        self.secrets.login = login;
        let mut attempt = async move { command::execute(&handle, command, secrets).await }.boxed();
        // The first poll queues the request in order.
        match (&mut attempt).now_or_never() {
            Some(outcome) => self.put(receiver, outcome).await,
            None => self
                .answers
                .send(Answer {
                    receiver,
                    outcome: attempt,
                })
                .await
                .is_err(),
        }
    }

    async fn put(&self, receiver: Option<UserName>, outcome: Result<Done, RequestError>) -> bool {
        let outcome = std::future::ready(outcome).boxed();
        self.answers
            .send(Answer { receiver, outcome })
            .await
            .is_err()
    }
}

/// Reads one line; `None` at the end.
async fn next_line(input: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = input
        .take(LINE_BYTES_MAX)
        .read_until(b'\n', &mut line)
        .await?;
    match line.last() {
        Some(b'\n') => drop(line.pop()),
        _ if read as u64 == LINE_BYTES_MAX => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line must be shorter than 16 MiB",
            ));
        }
        _ => {}
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok((read > 0).then_some(line))
}

/// Parses a line; `None` if it is blank or a comment.
fn parse_line(line: &[u8]) -> Option<Result<Command, Refusal>> {
    let refuse = |explanation: String| Refusal::new(Code::BadRequest, explanation);
    let Ok(line) = std::str::from_utf8(line) else {
        return Some(Err(refuse("the line is not UTF-8".to_owned())));
    };
    if line.trim().is_empty() || line.trim_start().starts_with('#') {
        return None;
    }
    Some(match command::parse(line) {
        Ok(Command::Password(None)) => Err(refuse("usage: password USER".to_owned())),
        parsed => parsed.map_err(|bad| refuse(bad.to_string())),
    })
}

/// The part that owns the output.
struct Printer {
    events: Events,
    exit: Exit,
    /// The user whose queued messages have not all been received.
    behind: Option<UserName>,
}

impl Printer {
    /// Prints all outcomes in order.
    async fn print(&mut self, mut answers: mpsc::Receiver<Answer>) -> Result<(), Failure> {
        while let Some(answer) = self.meanwhile(answers.recv()).await? {
            let outcome = self.meanwhile(answer.outcome).await?;
            self.exit = self
                .exit
                .max(outcome.as_ref().map_or_else(Exit::from, |_| Exit::Done));
            if outcome.is_ok() && answer.receiver.is_some() {
                self.behind = answer.receiver;
            }
            output::line(&lines::outcome(&outcome))?;
        }
        Ok(())
    }

    /// Awaits `work`, and prints messages that arrive meanwhile. `work` has
    /// priority: the answer to a `connect` precedes its messages.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                Some(event) = self.events.next() => self.take(event)?,
            }
        }
    }

    /// Prints the messages that were queued at the last `connect`, within a
    /// time limit.
    async fn catch_up(&mut self, timeout: Duration) -> Result<(), Failure> {
        let mut timeout = pin!(tokio::time::sleep(timeout));
        while self.behind.is_some() {
            tokio::select! {
                event = self.events.next() => match event {
                    Some(event) => self.take(event)?,
                    None => return Ok(()),
                },
                () = &mut timeout => return Ok(()),
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), Failure> {
        if let Event::Message(message) = event {
            let line = lines::message(message.room.as_ref(), &message.delivery);
            return output::message(message, &line);
        }
        if let Event::Gap(gap) = event {
            let line = lines::gap(&gap.gap);
            return output::gap(gap, &line);
        }
        if matches!(event, Event::CaughtUp { .. }) || output::report_end(&event) {
            self.behind = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_and_comments_are_skipped() {
        assert!(parse_line(b"").is_none());
        assert!(parse_line(b"  # send bob x").is_none());
        assert_eq!(parse_line(b"ping"), Some(Ok(Command::Ping)));
    }

    #[test]
    fn invalid_line_is_refused_locally() {
        for bad in [&b"frobnicate"[..], b"\xff", b"password", b"send bob"] {
            assert_eq!(parse_line(bad).unwrap().unwrap_err().code, Code::BadRequest);
        }
    }

    #[tokio::test]
    async fn lines_may_end_in_crlf_lf_or_eof() {
        let mut input = &b"one\r\n\ntwo"[..];
        let mut read = Vec::new();
        while let Some(line) = next_line(&mut input).await.unwrap() {
            read.push(line);
        }
        assert_eq!(read, [&b"one"[..], b"", b"two"]);
    }
}
