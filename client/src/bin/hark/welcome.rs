//! The first start: three questions, whose answers become the configuration.

use std::io::{self, Write as _};
use std::net::IpAddr;

use hark_client::RequestError;
use hark_protocol::{Code, UserName};

use crate::args::check_servers;
use crate::command::{Command, Secrets};
use crate::exit::Failure;
use crate::settings::{self, DEFAULT_SERVER, Settings};
use crate::{once, setup};

/// Asks for the server, the user and the password, unless there is a configuration or a flag.
/// Creates the account if it is new, and writes the configuration. Without a name, nothing is
/// remembered.
pub(crate) async fn complete(mut settings: Settings) -> Result<Settings, Failure> {
    let Some(path) = settings.first_start.take() else {
        return Ok(settings);
    };
    println!(
        "Welcome to hark. The answers are kept in {}.",
        path.display()
    );
    settings.server = answered(&format!("Server [{DEFAULT_SERVER}]: "), |text| {
        let server = if text.is_empty() {
            DEFAULT_SERVER
        } else {
            text
        };
        check_servers(server)
    })?;
    settings.tls = !is_local(&settings.server);
    let user = answered("Your name [none, to look around]: ", |text| match text {
        "" => Ok(None),
        name => name
            .parse::<UserName>()
            .map(Some)
            .map_err(|bad| bad.to_string()),
    })?;
    let Some(user) = user else {
        return Ok(settings);
    };
    settings.configured_user = Some(user.clone());
    settings.typed_password = setup::ask("Password [none, or a new account]: ")?;
    if settings.typed_password.is_none() {
        create(&mut settings, &user).await?;
    }
    settings::write_first(&path, &settings.server, settings.tls, &user)?;
    Ok(settings)
}

/// Creates the account, unless it exists without a password.
async fn create(settings: &mut Settings, user: &UserName) -> Result<(), Failure> {
    let (handle, events) = setup::client(settings)?;
    drop(events);
    let login = handle.login(user.clone(), None);
    match once::within(settings, &handle, login).await {
        Err(RequestError::Refused(refusal))
            if matches!(refusal.code, Code::NoSuchUser | Code::Denied) =>
        {
            let prompt = format!("New password for {user} [none]: ");
            let secrets = Secrets {
                password: setup::prompt_new(&prompt)?,
                ..Secrets::default()
            };
            let command = Command::Create(user.clone());
            once::attempt(settings, &handle, command, &secrets).await?;
            println!("{user} was created");
            settings.typed_password = secrets.password;
        }
        outcome => outcome?,
    }
    handle.close(settings.timeout).await;
    Ok(())
}

/// Returns whether the servers are on this machine. Others need TLS.
fn is_local(servers: &str) -> bool {
    servers.split(',').all(|server| {
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
        let host = host.trim_matches(['[', ']']);
        host == "localhost"
            || host
                .parse()
                .is_ok_and(|address: IpAddr| address.is_loopback())
    })
}

/// Asks until the answer is valid.
fn answered<T>(question: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Failure> {
    loop {
        print!("{question}");
        io::stdout().flush()?;
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line);
        if read.map_err(|error| Failure::local(format!("stdin: {error}")))? == 0 {
            return Err(Failure::local("no answer"));
        }
        match parse(line.trim()) {
            Ok(answer) => return Ok(answer),
            Err(why) => println!("{why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_needs_no_tls() {
        for local in ["localhost:3000", "127.0.0.1:3000,[::1]:3001"] {
            assert!(is_local(local), "{local}");
        }
        for other in ["chat.example:3000", "127.0.0.1:3000,10.0.0.1:3000"] {
            assert!(!is_local(other), "{other}");
        }
    }
}
