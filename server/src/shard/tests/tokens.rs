//! Tokens through the commit thread, on each log.

use hark_protocol::Code;

use super::super::kept::Failure;
use super::{Folder, Memory, config, faulty};
use crate::store::contract::{Home, WIDE, name, token};
use crate::store::{
    Account, Created, NewToken, PasswordHash, RoomAnswer, RoomCommand, Store, TokenDigest,
    Unavailable,
};

fn password() -> PasswordHash {
    PasswordHash::new("hash")
}

async fn bob(store: &dyn Store) -> Account {
    let created = store.create(&name("bob"), Some(password())).await;
    assert_eq!(created, Ok(Created::Created));
    let entry = store.account(&name("bob")).await;
    entry.unwrap().unwrap().account
}

async fn set(store: &dyn Store, account: &Account, secret: &str) -> Result<(), Unavailable> {
    let new = NewToken {
        name: "backup".parse().unwrap(),
        scope: "receive".parse().unwrap(),
        digest: TokenDigest::of(secret),
        password: password(),
    };
    let set = store.room_command(account, None, RoomCommand::SetToken(new));
    set.await
        .map(|answer| assert_eq!(answer, Ok(RoomAnswer::Done)))
}

/// Returns the user of a secret.
async fn user(store: &dyn Store, secret: &str) -> Option<String> {
    let found = store.token(TokenDigest::of(secret)).await.unwrap()?;
    assert_eq!(found.token.name.as_str(), "backup");
    Some(found.account.name.to_string())
}

async fn token_is_found_until_it_ends(home: &impl Home) {
    let store = home.open(WIDE);
    let account = bob(&*store).await;
    set(&*store, &account, "one").await.unwrap();
    assert_eq!(user(&*store, "one").await.as_deref(), Some("bob"));
    assert_eq!(user(&*store, "two").await, None);
    set(&*store, &account, "two").await.unwrap();
    assert_eq!(user(&*store, "one").await, None, "it is replaced");
    store.note_token_use(&account, TokenDigest::of("two"));
    store.close().await.unwrap();

    let store = home.open(WIDE);
    assert_eq!(user(&*store, "two").await.as_deref(), Some("bob"));
    let found = store.token(TokenDigest::of("two")).await.unwrap().unwrap();
    assert!(found.token.used_s >= found.token.created_s);
    assert!(found.token.created_s > 0);
    let new = PasswordHash::new("new");
    let changed = store.set_password(&account, Some(password()), new).await;
    assert_eq!(changed, Ok(true));
    assert_eq!(user(&*store, "two").await, None);
    let list = store.room_command(&account, None, RoomCommand::Tokens);
    assert_eq!(list.await, Ok(Ok(RoomAnswer::Tokens(Vec::new()))));
    store.close().await.unwrap();

    let store = home.open(WIDE);
    assert_eq!(user(&*store, "two").await, None);
}

#[tokio::test]
async fn token_in_memory_is_found_until_it_ends() {
    token_is_found_until_it_ends(&Memory::default()).await;
}

#[tokio::test]
async fn token_on_disk_is_found_until_it_ends() {
    token_is_found_until_it_ends(&Folder::new()).await;
}

#[tokio::test]
async fn failed_commit_leaves_tokens_as_they_were() {
    for (failure, expected) in [(Failure::Before, None), (Failure::After, Some("bob"))] {
        let (store, faults) = faulty(config(WIDE));
        let account = bob(&store).await;
        faults.fail_next(failure);
        assert_eq!(set(&store, &account, "one").await, Err(Unavailable));
        while store.open_session(&token("probe"), None).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(user(&store, "one").await.as_deref(), expected);
        set(&store, &account, "two").await.unwrap();
        assert_eq!(user(&store, "one").await, None);
        assert_eq!(user(&store, "two").await.as_deref(), Some("bob"));
    }
}

#[tokio::test]
async fn revocation_of_an_absent_token_succeeds() {
    let store = Memory::default().open(WIDE);
    let account = bob(&*store).await;
    set(&*store, &account, "one").await.unwrap();
    for existed in [true, false] {
        let revoke = RoomCommand::Revoke("backup".parse().unwrap());
        let revoked = store.room_command(&account, None, revoke).await;
        assert_eq!(revoked, Ok(Ok(RoomAnswer::Existed(existed))));
        assert_eq!(user(&*store, "one").await, None);
    }
    assert_eq!(store.delete(&account).await, Ok(true));
    let list = store.room_command(&account, None, RoomCommand::Tokens);
    assert_eq!(list.await, Ok(Err(Code::Denied)));
}
