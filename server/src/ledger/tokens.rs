//! The tokens of users. They end with their account and with its password.

use hark_protocol::{Code, TokenName};

use super::Ledger;
use super::changes::{AccountChange, Changes};
use super::inboxes::Inbox;
use super::record::Record;
use crate::store::{Account, AccountToken, NewToken, Token, TokenDigest};

/// The most tokens of a user.
pub(super) const TOKENS_MAX: usize = 60;

impl Ledger {
    /// Creates a token of a user. It replaces a former one of this name, so that a repeat
    /// after a lost answer is harmless.
    pub(super) fn set_token(
        &mut self,
        caller: &Account,
        new: NewToken,
        changes: &mut Changes,
    ) -> Result<(), Code> {
        let created_s = self.attached_at().unix_s;
        let inbox = self.inboxes.get_mut(caller).ok_or(Code::Denied)?;
        if inbox.password.as_ref() != Some(&new.password) {
            return Err(Code::Denied);
        }
        let token = Token {
            name: new.name,
            scope: new.scope,
            digest: new.digest,
            created_s,
            used_s: 0,
        };
        let tokens = &mut inbox.profile_mut().tokens;
        match tokens.find(&token.name) {
            Some(former) => {
                let ended = AccountChange::TokenEnded(former.digest);
                changes.effects.accounts.push(ended);
            }
            None if tokens.len() >= TOKENS_MAX => return Err(Code::TooMany),
            None => {}
        }
        tokens.set(token.clone());
        changes.effects.is_awaited = true;
        write(caller, token, changes);
        Ok(())
    }

    /// Returns the tokens of a user, sorted by name.
    pub(super) fn tokens(&self, caller: &Account) -> Result<Vec<Token>, Code> {
        let inbox = self.inboxes.get(&caller.name);
        let inbox = inbox.filter(|inbox| inbox.account == *caller);
        let profile = inbox.ok_or(Code::Denied)?.profile.as_ref();
        Ok(profile.map_or_else(Vec::new, |profile| profile.tokens.0.clone()))
    }

    /// Ends a token of a user. Returns whether it existed.
    pub(super) fn revoke(
        &mut self,
        caller: &Account,
        name: &TokenName,
        changes: &mut Changes,
    ) -> Result<bool, Code> {
        let inbox = self.inboxes.get_mut(caller).ok_or(Code::Denied)?;
        let profile = inbox.profile.as_mut();
        let Some(ended) = profile.and_then(|profile| profile.tokens.remove(name)) else {
            return Ok(false);
        };
        changes.record(&Record::TokenEnd(caller.incarnation, ended.name));
        let effects = &mut changes.effects;
        effects
            .accounts
            .push(AccountChange::TokenEnded(ended.digest));
        effects.is_awaited = true;
        Ok(true)
    }

    /// Notes that a token is used, unless it has ended or its last use is recent. Another
    /// record carries it to stable storage.
    pub(crate) fn note_token_use(
        &mut self,
        account: &Account,
        digest: &TokenDigest,
        changes: &mut Changes,
    ) {
        let now_s = self.attached_at().unix_s;
        let inbox = self.inboxes.get_mut(account);
        let profile = inbox.and_then(|inbox| inbox.profile.as_mut());
        let tokens = profile.map(|profile| &mut profile.tokens.0);
        let mut tokens = tokens.into_iter().flatten();
        let Some(token) = tokens.find(|token| token.digest == *digest) else {
            return;
        };
        if token.was_used_lately(now_s) {
            return;
        }
        token.used_s = now_s;
        let name = token.name.clone();
        changes.record(&Record::TokenUsed(account.incarnation, name, now_s));
        let used = AccountToken {
            account: account.clone(),
            token: token.clone(),
        };
        let used = AccountChange::Token(used.into());
        changes.effects.accounts.push(used);
    }

    /// Returns all tokens in any order.
    pub(crate) fn account_tokens(&self) -> impl Iterator<Item = AccountToken> {
        self.inboxes.iter_from(0).flat_map(|(_, inbox)| {
            let profile = inbox.profile.iter();
            let tokens = profile.flat_map(|profile| profile.tokens.0.iter());
            tokens.map(|token| AccountToken {
                account: inbox.account.clone(),
                token: token.clone(),
            })
        })
    }
}

fn write(account: &Account, token: Token, changes: &mut Changes) {
    changes.record(&Record::Token(account.incarnation, token.clone()));
    let account = account.clone();
    let set = AccountChange::Token(AccountToken { account, token }.into());
    changes.effects.accounts.push(set);
}

impl Inbox {
    /// Ends all tokens of the user. The end of an account needs no record of them.
    pub(super) fn end_tokens(&mut self, is_recorded: bool, changes: &mut Changes) {
        let profile = self.profile.as_mut();
        let tokens = profile.map(|profile| std::mem::take(&mut profile.tokens).0);
        for token in tokens.into_iter().flatten() {
            if is_recorded {
                changes.record(&Record::TokenEnd(self.account.incarnation, token.name));
            }
            let ended = AccountChange::TokenEnded(token.digest);
            changes.effects.accounts.push(ended);
        }
    }
}

/// The tokens of a user, sorted by name.
#[derive(Debug, Default)]
pub(super) struct Tokens(pub(super) Vec<Token>);

impl Tokens {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn place(&self, name: &TokenName) -> Result<usize, usize> {
        self.0.binary_search_by(|token| token.name.cmp(name))
    }

    fn find(&self, name: &TokenName) -> Option<&Token> {
        self.0.get(self.place(name).ok()?)
    }

    /// Adds a token, or replaces the one of its name.
    pub(super) fn set(&mut self, token: Token) {
        match self.place(&token.name) {
            Ok(at) => {
                if let Some(former) = self.0.get_mut(at) {
                    *former = token;
                }
            }
            Err(at) => self.0.insert(at, token),
        }
    }

    /// Removes the token of a name.
    pub(super) fn remove(&mut self, name: &TokenName) -> Option<Token> {
        let at = self.place(name).ok()?;
        Some(self.0.remove(at))
    }

    /// Replays a use of a token.
    pub(super) fn replay_use(&mut self, name: &TokenName, used_s: u32) {
        let at = self.place(name).ok();
        if let Some(token) = at.and_then(|at| self.0.get_mut(at)) {
            token.used_s = used_s;
        }
    }
}
