//! `harkd user`: administration of accounts, in the folder of a stopped server or in a
//! cluster at any time.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;

use anyhow::{Context, bail};
use hark_prompt::Quiet;
use hark_protocol::{Password, UserName};
use zeroize::Zeroizing;

use super::print;
use crate::chat::passwords;
use crate::config::{Purpose, StoreArgs, StorePlace, UserAction, UserArgs};
use crate::log::disk::snapshot;
use crate::shard::ShardConfig;
use crate::store::{AccountEntry, Created, PasswordHash, Store};

/// The maximum number of names in one fetch.
const PAGE_NAMES: usize = 1024;

/// Runs an action, and prints its result.
///
/// # Errors
/// One line with the cause and the remedy.
pub(super) fn run(place: &StoreArgs, arguments: UserArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(execute(place, arguments))
}

async fn execute(place: &StoreArgs, arguments: UserArgs) -> anyhow::Result<()> {
    match place.place()? {
        StorePlace::Memory => {
            bail!(
                "a store in memory has no accounts to manage; name a folder or a cluster with --store"
            )
        }
        StorePlace::Folder(folder) if !matches!(arguments.action, UserAction::Add { .. }) => {
            snapshot::find(&folder)?;
        }
        _ => {}
    }
    // Prompts for the password before it locks the store.
    let action = Prepared::new(arguments.action)?;
    let may_create = matches!(action, Prepared::Add(..));
    let store = place
        .open(ShardConfig::default(), Purpose::Tool { may_create })
        .await?;
    let done = action.execute(&*store).await;
    let closed = store.close().await;
    done?;
    closed.context("the change may not be on disk")
}

enum Prepared {
    Add(UserName, Option<PasswordHash>),
    Remove(UserName),
    List,
    SetPassword(UserName, PasswordHash),
}

impl Prepared {
    fn new(action: UserAction) -> anyhow::Result<Self> {
        Ok(match action {
            UserAction::Add {
                name,
                no_password,
                password_file,
            } => {
                let name: UserName = name.parse()?;
                name.check_new()?;
                let password = if no_password {
                    None
                } else {
                    Some(hashed(password_file.as_deref())?)
                };
                Self::Add(name, password)
            }
            UserAction::Remove { name } => Self::Remove(name.parse()?),
            UserAction::List => Self::List,
            UserAction::SetPassword {
                name,
                password_file,
            } => Self::SetPassword(name.parse()?, hashed(password_file.as_deref())?),
        })
    }

    async fn execute(self, store: &dyn Store) -> anyhow::Result<()> {
        match self {
            Self::Add(name, password) => match store.create(&name, password).await? {
                Created::Created => print(format_args!("added {name}")),
                Created::Exists => bail!("{name} already exists"),
                Created::TooMany => bail!("the store has reached its account limit"),
            },
            Self::Remove(name) => {
                let entry = existing(store, &name).await?;
                store.delete(&entry.account).await?;
                print(format_args!("removed {name}"))
            }
            Self::SetPassword(name, password) => {
                let entry = existing(store, &name).await?;
                store
                    .set_password(&entry.account, entry.password, password)
                    .await?;
                print(format_args!("set the password of {name}"))
            }
            Self::List => list(store).await,
        }
    }
}

async fn existing(store: &dyn Store, name: &UserName) -> anyhow::Result<AccountEntry> {
    store
        .account(name)
        .await?
        .with_context(|| format!("there is no user {name}"))
}

async fn list(store: &dyn Store) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let page = store.names(after.as_ref(), PAGE_NAMES).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        for name in &page {
            print(format_args!("{name}"))?;
        }
    }
}

fn hashed(file: Option<&Path>) -> anyhow::Result<PasswordHash> {
    Ok(passwords::hash(&password(file)?)?)
}

/// Asks for a password: in a file, the environment, or a prompt.
pub(super) fn password(file: Option<&Path>) -> anyhow::Result<Password> {
    if let Some(file) = file {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        return Ok(Zeroizing::new(text)
            .lines()
            .next()
            .unwrap_or_default()
            .parse()?);
    }
    if let Ok(password) = std::env::var("HARKD_PASSWORD").map(Zeroizing::new) {
        return Ok(password.parse()?);
    }
    if !io::stdin().is_terminal() {
        bail!(
            "no password: use --password-file or HARKD_PASSWORD, or --no-password for an open account"
        );
    }
    let mut quiet = Quiet::begin()?;
    let first = quiet.ask("Password: ")?;
    if quiet.ask("Repeat: ")? != first {
        bail!("the passwords differ; nothing was changed");
    }
    Ok(first.parse()?)
}
