//! `hark admin`: administers a server over the network, as a user that its settings name as
//! an admin. The commands are those of `harkd admin`.

use std::io::{self, IsTerminal as _};

use hark_admin::{Connection, Console, Error};
use hark_client::{RequestError, Transport};
use hark_grpc::status;
use hark_protocol::{Password, UserName};
use tokio::time::timeout;

use crate::args::AdminArguments;
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::setup;
use crate::text::escape;

/// Executes a command, and prints its result.
pub(crate) async fn run(settings: &Settings, arguments: AdminArguments) -> Result<Exit, Failure> {
    let AdminArguments { json, command } = arguments;
    let user = settings.require_user()?.clone();
    let secrets = setup::secrets_of(settings, Some(&user))?;
    let password = match secrets.password {
        None if setup::can_prompt() => setup::ask(&format!("Password of {user}: "))?,
        password => password,
    };
    let password = password
        .ok_or_else(|| Failure::local("no password: use --password-file or HARK_PASSWORD"))?;
    let mut connection = match connect(settings, user, password).await {
        Ok(connection) => connection,
        Err(why) => {
            eprintln!("hark: cannot reach {}: {}", settings.server, escape(&why));
            return Ok(Exit::Unknown);
        }
    };
    let new_password = secrets.new_password;
    let mut console = Console {
        output: &mut io::stdout(),
        is_json: json,
        is_terminal: io::stdout().is_terminal(),
        new_password: &mut || match &new_password {
            Some(password) => Ok(password.clone()),
            None if setup::can_prompt() => match setup::prompt_new("New password: ") {
                Ok(Some(password)) => Ok(password),
                Ok(None) => Err("no new password".to_owned()),
                Err(failure) => Err(failure.to_string()),
            },
            None => Err("no password: use --new-password-file or HARK_NEW_PASSWORD".to_owned()),
        },
    };
    let executed = hark_admin::execute(&mut connection, command, &mut console).await;
    executed.map_or_else(|error| failed(settings, error), |()| Ok(Exit::Done))
}

/// Connects to the first server that can be reached.
async fn connect(
    settings: &Settings,
    user: UserName,
    password: Password,
) -> Result<Connection, String> {
    let config = setup::grpc(settings).map_err(|failure| failure.to_string())?;
    let mut last = "no server is named".to_owned();
    for server in &config.servers {
        let Transport::Grpc { origin } = &server.transport else {
            continue;
        };
        let origin = origin
            .parse()
            .map_err(|_| format!("bad address {origin}"))?;
        let credentials = (user.clone(), password.clone());
        let opening = async {
            let stream = server.dial.dial().await;
            let stream = stream.map_err(|error| error.to_string())?;
            Connection::open(stream, Some(origin), Some(credentials)).await
        };
        match timeout(settings.timeout, opening).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => last = error,
            Err(_) => last = "no answer in time".to_owned(),
        }
    }
    Err(last)
}

/// Reports the failure of a command.
fn failed(settings: &Settings, error: Error) -> Result<Exit, Failure> {
    match error {
        Error::Call(status) => match status::refusal(&status) {
            Some(refusal) => Err(RequestError::from(refusal).into()),
            None => {
                let (server, why) = (&settings.server, escape(status.message()).into_owned());
                eprintln!("hark: {server}: {why}");
                Ok(Exit::Unknown)
            }
        },
        Error::Failed(why) => {
            eprintln!("hark: {}", escape(&why));
            Ok(Exit::Refused)
        }
        Error::Local(why) => Err(Failure::local(why)),
        Error::Output(error) => Err(error.into()),
    }
}
