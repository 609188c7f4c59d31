//! A single command, given as arguments.

use std::future::Future;
use std::io::Write as _;
use std::pin::pin;
use std::time::Duration;

use hark_client::{Handle, LinkState, RequestError};
use hark_protocol::{Code, Refusal, UserName};
use tokio::time::sleep;

use crate::command::{self, Command, Done, Secrets};
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::text::{escape, escape_name};
use crate::{lines, setup};

/// How long a deletion waits for its answer, if the server can be reached: longer than the
/// servers of a cluster wait for one of them that was killed.
const DELETION_TIMEOUT: Duration = Duration::from_secs(65);

/// Executes one command, as the user of the settings or anonymously.
pub(crate) async fn run(settings: &Settings, command: Command) -> Result<Exit, Failure> {
    let as_user = user_of(settings, &command);
    let mut secrets = setup::secrets_of(settings, as_user.as_ref())?;
    if matches!(command, Command::Password(_)) {
        prompt_for_new_password(&mut secrets)?;
    }
    let (handle, events) = setup::client(settings)?;
    // A login receives nothing.
    drop(events);
    let may_need_login = as_user.is_none() && takes_as(&command);
    if let Some(user) = as_user {
        attempt(settings, &handle, Command::Login(user.clone()), &secrets).await?;
        secrets.login = Some(user);
    }
    let done = match attempt(settings, &handle, command, &secrets).await {
        Err(Failure::Request(RequestError::Refused(refusal)))
            if refusal.code == Code::Denied && may_need_login =>
        {
            let explanation = format!("{}; log in with --as USER", refusal.explanation);
            return Err(RequestError::from(Refusal::new(Code::Denied, explanation)).into());
        }
        done => done?,
    };
    handle.close(settings.timeout).await;
    print(&done)?;
    Ok(Exit::Done)
}

/// Returns the user of a command. That of the configuration is not for commands that a user
/// without an account needs.
fn user_of(settings: &Settings, command: &Command) -> Option<UserName> {
    let configured = match command {
        Command::Create(_) | Command::Password(_) | Command::Ping => None,
        _ => settings.configured_user.clone(),
    };
    settings.as_user.clone().or(configured)
}

/// Returns whether `--as` may help if this command is denied.
const fn takes_as(command: &Command) -> bool {
    matches!(
        command,
        Command::Send(..)
            | Command::Delete(_)
            | Command::List(_)
            | Command::Room(..)
            | Command::Join(_)
            | Command::Leave(_)
            | Command::Invite(..)
            | Command::Expel(..)
            | Command::Own(..)
            | Command::Talk(_)
            | Command::Block(_)
            | Command::Unblock(_)
            | Command::Rooms(_)
            | Command::Members(_)
            | Command::History(..)
            | Command::Seen(..)
            | Command::Devices
            | Command::Forget(_)
            | Command::Token(..)
            | Command::Tokens
            | Command::Revoke(_)
    )
}

/// Returns whether this command sends a password.
const fn takes_password(command: &Command) -> bool {
    matches!(
        command,
        Command::Create(_)
            | Command::Login(_)
            | Command::Connect(_)
            | Command::Delete(_)
            | Command::Password(_)
    )
}

fn print(done: &Done) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match done {
        Done::Listed(answer) => {
            for name in &answer.names {
                writeln!(out, "{}", escape_name(name.as_str()))?;
            }
            if answer.is_truncated {
                eprintln!("hark: the list is truncated by the server");
            }
        }
        Done::Talking(room) => writeln!(out, "{room}")?,
        Done::Rooms(rooms) => {
            for room in rooms {
                writeln!(out, "{}", lines::room(room))?;
            }
        }
        Done::Devices(devices) => {
            for device in devices {
                writeln!(out, "{}", lines::device(device))?;
            }
        }
        Done::Token(secret) => writeln!(out, "{}", secret.expose())?,
        Done::Tokens(tokens) => {
            for token in tokens {
                writeln!(out, "{}", lines::token(token))?;
            }
        }
        Done::Past(messages) => {
            for message in messages {
                writeln!(out, "{}", lines::delivery(message))?;
            }
        }
        Done::Plain | Done::Connected(_) | Done::Deleted(_) | Done::Joined(_) => {
            writeln!(out, "{}", lines::outcome(&Ok(done.clone())))?;
        }
    }
    Ok(out.flush()?)
}

/// Prompts for the new password first, since nothing can be done without one.
fn prompt_for_new_password(secrets: &mut Secrets) -> Result<(), Failure> {
    if secrets.new_password.is_none() && setup::can_prompt() {
        secrets.new_password = setup::prompt_new("New password: ")?;
    }
    match secrets.new_password {
        Some(_) => Ok(()),
        None => Err(Failure::local(
            "no new password given; see --new-password-file",
        )),
    }
}

/// Executes a command. Retries with a password from a prompt if the server
/// requires one and none was given.
pub(crate) async fn attempt(
    settings: &Settings,
    handle: &Handle,
    command: Command,
    secrets: &Secrets,
) -> Result<Done, Failure> {
    let extension = if matches!(command, Command::Delete(_)) {
        DELETION_TIMEOUT.saturating_sub(settings.timeout)
    } else {
        Duration::ZERO
    };
    let given = match command {
        Command::Create(_) if secrets.login.is_some() => &secrets.new_password,
        _ => &secrets.password,
    };
    let may_prompt = given.is_none() && takes_password(&command);
    let first = command::execute(handle, command.clone(), secrets.clone());
    match with_timeout(settings, handle, extension, first).await {
        Err(RequestError::Refused(refusal))
            if refusal.code == Code::Denied && may_prompt && setup::can_prompt() =>
        {
            let mut secrets = secrets.clone();
            let password = setup::ask("Password: ")?;
            if matches!(command, Command::Create(_)) && secrets.login.is_some() {
                secrets.new_password = password;
            } else {
                secrets.password = password;
            }
            let second = command::execute(handle, command, secrets);
            Ok(with_timeout(settings, handle, extension, second).await?)
        }
        outcome => Ok(outcome?),
    }
}

/// Waits for an answer up to `--timeout`.
pub(crate) async fn within<T>(
    settings: &Settings,
    handle: &Handle,
    attempt: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, RequestError> {
    with_timeout(settings, handle, Duration::ZERO, attempt).await
}

/// Waits for an answer up to `--timeout`, which is extended while the server can be reached, or
/// until the connection fails permanently. The client is then closed, which distinguishes unsent requests
/// from unknown outcomes.
async fn with_timeout<T>(
    settings: &Settings,
    handle: &Handle,
    extension: Duration,
    attempt: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, RequestError> {
    let mut attempt = pin!(attempt);
    let server = &settings.server;
    let (not_sent, unknown) = tokio::select! {
        outcome = &mut attempt => return outcome,
        seconds = timeout(settings.timeout, extension, handle) => (format!("cannot reach {server} within {seconds} s"), format!("no answer within {seconds} s")),
        reason = permanent_failure(settings, handle) => (format!("no connection to {server}: {reason}"), reason),
    };
    handle.close(Duration::ZERO).await;
    attempt.await.map_err(|error| match error {
        RequestError::NotSent(_) => RequestError::NotSent(not_sent.into()),
        RequestError::Unknown { what, .. } => RequestError::Unknown {
            what,
            why: unknown.into(),
        },
        other => other,
    })
}

/// Waits for the timeout and, if the server can be reached then, for its extension. Returns the
/// seconds that have passed.
async fn timeout(timeout: Duration, extension: Duration, handle: &Handle) -> u64 {
    sleep(timeout).await;
    let seconds = timeout.as_secs();
    let is_up = matches!(&*handle.link().borrow(), LinkState::Up { .. });
    if extension.is_zero() || !is_up {
        return seconds;
    }
    let more = extension.as_secs();
    eprintln!(
        "hark: no answer within {seconds} s; the servers of a cluster wait for one that was lost; \
         waiting for up to {more} s more"
    );
    sleep(extension).await;
    seconds + more
}

/// Waits until the connection fails permanently, and returns the reason.
/// Reports once that the server is unreachable if it may come back.
async fn permanent_failure(settings: &Settings, handle: &Handle) -> String {
    let (mut link, mut is_reported) = (handle.link(), false);
    loop {
        if let LinkState::Down {
            reason,
            is_permanent,
            retry_in,
            ..
        } = &*link.borrow_and_update()
        {
            if *is_permanent {
                return reason.clone();
            }
            // No wait begins if another server is tried at once.
            if !retry_in.is_zero() && !std::mem::replace(&mut is_reported, true) {
                let (seconds, reason) = (settings.timeout.as_secs(), escape(reason));
                eprintln!(
                    "hark: no connection to {}: {reason}; retrying for {seconds} s",
                    settings.server
                );
            }
        }
        if link.changed().await.is_err() {
            // The client has ended, and every request has its outcome.
            return std::future::pending().await;
        }
    }
}
