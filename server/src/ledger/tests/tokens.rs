//! The rules of tokens, and a model with which the ledger agrees after any sequence of
//! operations, checkpoints and crashes.

use std::collections::BTreeMap;
use std::time::Duration;

use hark_protocol::Code;
use proptest::prelude::*;

use super::super::AccountChange;
use super::super::tokens::TOKENS_MAX;
use super::{Driver, LIMITS, name};
use crate::store::{Account, NewToken, PasswordHash, Token, TokenDigest};

fn hash(text: &str) -> PasswordHash {
    PasswordHash::new(text)
}

/// Returns a token whose secret is its name and a number.
fn new(token: &str, nth: usize) -> NewToken {
    NewToken {
        name: token.parse().unwrap(),
        scope: "send:#team".parse().unwrap(),
        digest: digest(token, nth),
        password: hash("old"),
    }
}

fn digest(token: &str, nth: usize) -> TokenDigest {
    TokenDigest::of(&format!("{token}{nth}"))
}

/// The digests and the last uses of tokens, by name.
type Tokens = BTreeMap<String, (TokenDigest, u32)>;

fn by_name(tokens: impl IntoIterator<Item = Token>) -> Tokens {
    let entry = |token: Token| (token.name.to_string(), (token.digest, token.used_s));
    tokens.into_iter().map(entry).collect()
}

/// Bob, who has a password, and the tokens as other threads see them.
struct Bob {
    driver: Driver,
    account: Account,
    directory: Vec<Token>,
}

impl Bob {
    fn new() -> Self {
        let mut driver = Driver::with(LIMITS);
        let account = create(&mut driver);
        Self {
            driver,
            account,
            directory: Vec::new(),
        }
    }

    fn set(&mut self, new: NewToken) -> Result<(), Code> {
        let (account, driver) = (&self.account, &mut self.driver);
        driver.ledger.set_token(account, new, &mut driver.changes)
    }

    fn revoke(&mut self, token: &str) -> Result<bool, Code> {
        let (account, driver) = (&self.account, &mut self.driver);
        let token = token.parse().unwrap();
        driver.ledger.revoke(account, &token, &mut driver.changes)
    }

    fn set_password(&mut self, old: &str, new: &str) -> bool {
        let (account, driver) = (&self.account, &mut self.driver);
        let (old, new) = (hash(old), hash(new));
        driver
            .ledger
            .set_password(account, Some(&old), new, &mut driver.changes)
    }

    fn tokens(&self) -> Tokens {
        by_name(self.driver.ledger.tokens(&self.account).unwrap())
    }

    /// Ends the frame, whose changes other threads see then.
    fn frame(&mut self) {
        let changes = std::mem::take(&mut self.driver.changes.effects.accounts);
        for change in changes {
            match change {
                AccountChange::Token(changed) => {
                    let digest = changed.token.digest;
                    self.directory.retain(|token| token.digest != digest);
                    self.directory.push(changed.token);
                }
                AccountChange::TokenEnded(digest) => {
                    self.directory.retain(|token| token.digest != digest);
                }
                AccountChange::Present(_) | AccountChange::Ended(_) => {}
            }
        }
        self.driver.next_frame();
    }
}

/// Creates Bob's account, whose password is `old`.
fn create(driver: &mut Driver) -> Account {
    let password = Some(hash("old"));
    driver
        .ledger
        .create(&name("bob"), password, &mut driver.changes);
    driver.account("bob").unwrap()
}

#[test]
fn token_needs_the_current_password() {
    let mut bob = Bob::new();
    let stale = NewToken {
        password: hash("former"),
        ..new("backup", 0)
    };
    assert_eq!(bob.set(stale), Err(Code::Denied));
    assert_eq!(bob.set(new("backup", 0)), Ok(()));
    assert!(bob.driver.changes.effects.is_awaited);
    bob.driver.check_replay();
}

#[test]
fn user_has_at_most_60_tokens() {
    let mut bob = Bob::new();
    for nth in 0..TOKENS_MAX {
        assert_eq!(bob.set(new(&format!("t{nth}"), nth)), Ok(()));
    }
    assert_eq!(bob.set(new("more", 0)), Err(Code::TooMany));
    assert_eq!(bob.set(new("t7", 100)), Ok(()), "one is replaced");
    assert_eq!(bob.tokens()["t7"].0, digest("t7", 100));
    assert_eq!(bob.revoke("t7"), Ok(true));
    assert_eq!(bob.revoke("t7"), Ok(false));
    assert_eq!(bob.set(new("more", 0)), Ok(()));
    bob.driver.check_replay();
}

#[test]
fn tokens_end_with_the_password() {
    let mut bob = Bob::new();
    bob.set(new("a", 0)).unwrap();
    bob.set(new("b", 0)).unwrap();
    assert!(!bob.set_password("wrong", "new"));
    assert_eq!(bob.tokens().len(), 2);
    assert!(bob.set_password("old", "new"));
    assert_eq!(bob.tokens(), Tokens::new());
    bob.frame();
    assert_eq!(bob.directory, []);
    bob.driver.check_replay();
}

#[test]
fn tokens_end_with_the_account() {
    let mut bob = Bob::new();
    bob.set(new("a", 0)).unwrap();
    bob.frame();
    let (former, driver) = (bob.account.clone(), &mut bob.driver);
    assert!(driver.ledger.delete(&former, &mut driver.changes));
    bob.account = create(driver);
    bob.frame();
    assert_eq!(bob.tokens(), Tokens::new());
    assert_eq!(bob.directory, []);
    let driver = &mut bob.driver;
    let set = driver
        .ledger
        .set_token(&former, new("a", 1), &mut driver.changes);
    assert_eq!(set, Err(Code::Denied));
    driver.check_replay();
}

#[test]
fn use_is_recorded_once_an_hour_and_awaits_no_sync() {
    let mut bob = Bob::new();
    bob.set(new("a", 0)).unwrap();
    bob.frame();
    for (minutes, recorded) in [(1000, 1000), (1059, 1000), (1060, 1060)] {
        let driver = &mut bob.driver;
        driver.context.wall_ms = minutes * 60_000;
        driver.next_frame();
        let digest = digest("a", 0);
        driver
            .ledger
            .note_token_use(&bob.account, &digest, &mut driver.changes);
        assert!(!driver.changes.effects.is_awaited);
        bob.frame();
        let used_s = bob.tokens()["a"].1;
        assert_eq!(u64::from(used_s), recorded * 60);
        assert_eq!(bob.directory[0].used_s, used_s);
    }
    bob.driver.check_replay();
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Set(usize),
    Revoke(usize),
    Use(usize),
    Password,
    Recreate,
    Wait(u64),
    Frame,
    Checkpoint,
    Crash,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn op() -> impl Strategy<Value = Op> {
    let of = 0..NAMES.len();
    prop_oneof![
        6 => of.clone().prop_map(Op::Set),
        3 => of.clone().prop_map(Op::Revoke),
        4 => of.prop_map(Op::Use),
        1 => Just(Op::Password),
        1 => Just(Op::Recreate),
        2 => (0..100_u64).prop_map(Op::Wait),
        4 => Just(Op::Frame),
        6 => Just(Op::Checkpoint),
        2 => Just(Op::Crash),
    ]
}

/// The ledger and the model side by side.
struct Pair {
    bob: Bob,
    tokens: Tokens,
    /// The tokens and the account in the last frame that was written.
    written: (Tokens, Account),
    now_s: u32,
}

impl Pair {
    fn step(&mut self, nth: usize, op: Op) {
        match op {
            Op::Set(of) => {
                self.bob.set(new(NAMES[of], nth)).unwrap();
                let token = (digest(NAMES[of], nth), 0);
                self.tokens.insert(NAMES[of].to_owned(), token);
            }
            Op::Revoke(of) => {
                let existed = self.tokens.remove(NAMES[of]).is_some();
                assert_eq!(self.bob.revoke(NAMES[of]), Ok(existed));
            }
            Op::Use(of) => {
                let Some((digest, used_s)) = self.tokens.get_mut(NAMES[of]) else {
                    return;
                };
                let driver = &mut self.bob.driver;
                driver
                    .ledger
                    .note_token_use(&self.bob.account, digest, &mut driver.changes);
                if self.now_s >= *used_s + 3600 {
                    *used_s = self.now_s;
                }
            }
            Op::Password => {
                assert!(self.bob.set_password("old", "old"));
                self.tokens.clear();
            }
            Op::Recreate => {
                let (bob, tokens) = (&mut self.bob, &mut self.tokens);
                let driver = &mut bob.driver;
                assert!(driver.ledger.delete(&bob.account, &mut driver.changes));
                bob.account = create(driver);
                tokens.clear();
            }
            Op::Wait(minutes) => {
                self.bob.driver.context.running += Duration::from_secs(60 * minutes);
                self.bob.driver.context.wall_ms += 60_000 * minutes;
                self.frame();
            }
            Op::Frame => self.frame(),
            Op::Checkpoint => {
                self.frame();
                self.bob.driver.checkpoint();
            }
            Op::Crash => self.crash(),
        }
    }

    fn frame(&mut self) {
        self.bob.frame();
        self.written = (self.tokens.clone(), self.bob.account.clone());
        self.now_s = (self.bob.driver.context.wall_ms / 1000) as u32;
        // What other threads see agrees with the state.
        assert_eq!(by_name(self.bob.directory.clone()), self.tokens);
        let entries = self.bob.driver.ledger.account_tokens();
        assert_eq!(by_name(entries.map(|entry| entry.token)), self.tokens);
    }

    fn crash(&mut self) {
        let driver = &mut self.bob.driver;
        driver.changes = Default::default();
        driver.ledger = driver.replayed(1);
        driver.checkpoint = None;
        driver.ledger.begin(driver.context, &mut driver.changes);
        (self.tokens, self.bob.account) = self.written.clone();
        let entries = self.bob.driver.ledger.account_tokens();
        self.bob.directory = entries.map(|entry| entry.token).collect();
        self.now_s = (self.bob.driver.context.wall_ms / 1000) as u32;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn tokens_agree_with_the_model(ops in proptest::collection::vec(op(), 1..120)) {
        let mut bob = Bob::new();
        bob.driver.context.wall_ms = 1_000_000_000;
        bob.frame();
        let account = bob.account.clone();
        let mut pair = Pair {
            bob,
            tokens: Tokens::new(),
            written: (Tokens::new(), account),
            now_s: 1_000_000,
        };
        for (nth, op) in ops.into_iter().enumerate() {
            pair.step(nth, op);
            assert_eq!(pair.bob.tokens(), pair.tokens, "{op:?}");
        }
        pair.bob.driver.check_replay();
    }
}
