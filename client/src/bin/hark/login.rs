//! `hark login` and `hark logout`: a token that stands for the password on this device, in
//! a file that only its owner can read. A token that was created over TLS is never sent
//! without it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use hark_protocol::message::Scope;
use hark_protocol::{Password, TokenName, UserName};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::command::Command;
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::{once, output, setup};

/// A user of a server or cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    servers: BTreeSet<String>,
    is_tls: bool,
    user: String,
}

/// A stored token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    account: Account,
    /// Name of the token on the server.
    name: String,
    secret: String,
}

/// The file of tokens.
struct TokenFile {
    path: PathBuf,
}

/// Creates a token with the password of the user, and stores it in place of a former one.
pub(crate) async fn login(settings: &Settings, user: Option<UserName>) -> Result<Exit, Failure> {
    let user = user_of(settings, user)?;
    let name = setup::device(settings)?;
    let name: TokenName = name.as_str().parse().map_err(Failure::local)?;
    let secrets = setup::secrets_but_token(settings, Some(&user))?;
    let (handle, events) = setup::client(settings)?;
    // A login receives nothing.
    drop(events);
    let command = Command::Login(user.clone());
    once::attempt(settings, &handle, command, &secrets).await?;
    let token = handle.token(name.clone(), Scope::All);
    let secret = once::within(settings, &handle, token).await?;
    handle.close(settings.timeout).await;
    let token = Stored {
        account: Account::of(settings, &user),
        name: name.to_string(),
        secret: secret.expose().to_owned(),
    };
    TokenFile::of(settings)?.store(token)?;
    output::line("ok")?;
    Ok(Exit::Done)
}

/// Removes the token of the user from this device. It is valid until it is revoked.
pub(crate) fn logout(settings: &Settings, user: Option<UserName>) -> Result<Exit, Failure> {
    let user = user_of(settings, user)?;
    let removed = TokenFile::of(settings)?.remove(&Account::of(settings, &user))?;
    let Some(removed) = removed else {
        return Err(Failure::local(format!("no token of {user} is stored")));
    };
    eprintln!(
        "hark: the token is no longer on this device; `hark token revoke {}` ends it",
        removed.name
    );
    output::line("ok")?;
    Ok(Exit::Done)
}

/// Returns the stored token of a user.
pub(crate) fn stored(settings: &Settings, user: &UserName) -> Result<Option<Password>, Failure> {
    let file = TokenFile::of(settings)?;
    let account = Account::of(settings, user);
    let all = file.read().map_err(|error| file.failure(error))?;
    let found = all.iter().find(|one| one.account == account);
    let parse = |one: &Stored| one.secret.parse().map_err(|bad| file.failure(bad));
    found.map(parse).transpose()
}

fn user_of(settings: &Settings, user: Option<UserName>) -> Result<UserName, Failure> {
    user.map_or_else(|| settings.require_user().cloned(), Ok)
}

impl Account {
    fn of(settings: &Settings, user: &UserName) -> Self {
        Self {
            servers: settings.server.split(',').map(str::to_owned).collect(),
            is_tls: setup::is_tls(settings),
            user: user.to_string(),
        }
    }
}

impl TokenFile {
    fn of(settings: &Settings) -> Result<Self, Failure> {
        let path = setup::state_dir(settings)?.join("tokens.json");
        Ok(Self { path })
    }

    fn store(&self, token: Stored) -> Result<(), Failure> {
        let account = token.account.clone();
        self.change(&account, Some(token)).map(drop)
    }

    fn remove(&self, account: &Account) -> Result<Option<Stored>, Failure> {
        self.change(account, None)
    }

    /// Replaces or removes the token of an account, and returns the former one.
    fn change(&self, account: &Account, new: Option<Stored>) -> Result<Option<Stored>, Failure> {
        let change = || {
            let _turn = self.lock()?;
            let mut all = self.read()?;
            let at = all.iter().position(|one| one.account == *account);
            let former = at.map(|at| all.remove(at));
            all.extend(new);
            let text = Zeroizing::new(serde_json::to_vec_pretty(&all)?);
            replace(&self.path, &text)?;
            Ok(former)
        };
        change().map_err(|error: io::Error| self.failure(error))
    }

    /// Locks the file against other processes until the result is dropped.
    fn lock(&self) -> io::Result<File> {
        self.path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let path = self.path.with_extension("lock");
        let lock = OpenOptions::new().create(true).append(true).open(path)?;
        lock.lock()?;
        Ok(lock)
    }

    fn read(&self) -> io::Result<Vec<Stored>> {
        match fs::read(&self.path) {
            Ok(text) => Ok(serde_json::from_slice(&Zeroizing::new(text))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn failure(&self, error: impl std::fmt::Display) -> Failure {
        Failure::local(format!("tokens in {}: {error}", self.path.display()))
    }
}

/// Replaces a file by one that only its owner can read.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    // A leftover of a killed process may have other permissions.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.create_new(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(servers: &[&str], is_tls: bool) -> Account {
        Account {
            servers: servers.iter().map(|one| (*one).to_owned()).collect(),
            is_tls,
            user: "ann".to_owned(),
        }
    }

    fn token(account: &Account, secret: &str) -> Stored {
        Stored {
            account: account.clone(),
            name: "laptop".to_owned(),
            secret: secret.to_owned(),
        }
    }

    #[test]
    fn each_account_has_one_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = TokenFile {
            path: directory.path().join("state/tokens.json"),
        };
        let secrets = || {
            let all = file.read().unwrap();
            all.into_iter().map(|one| one.secret).collect::<Vec<_>>()
        };
        let (cluster, plain) = (account(&["a:1", "b:1"], true), account(&["a:1"], false));
        assert!(file.remove(&plain).is_ok_and(|former| former.is_none()));
        file.store(token(&cluster, "hk_1")).ok().unwrap();
        file.store(token(&plain, "hk_2")).ok().unwrap();
        file.store(token(&account(&["b:1", "a:1"], true), "hk_3"))
            .ok()
            .unwrap();
        assert_eq!(secrets(), ["hk_2", "hk_3"]);
        assert!(file.remove(&plain).is_ok_and(|former| former.is_some()));
        assert_eq!(secrets(), ["hk_3"]);
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_tokens() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        // Left by a killed process, and readable by others.
        fs::write(path.with_extension("new"), "x").unwrap();
        let file = TokenFile { path };
        file.store(token(&account(&["a:1"], false), "hk_1"))
            .ok()
            .unwrap();
        let mode = fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
