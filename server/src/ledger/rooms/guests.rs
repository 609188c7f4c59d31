//! [`Guests`]: the invitations and bans of a room. Accounts are known by their
//! incarnations, so that neither passes to a later account of the same name.
//!
//! An entry that has expired, or whose account has ended, is without effect. It takes a
//! place until the list is full. Changes are the same live and in a replay: no bound or
//! expiry applies to them, and each removal for room is a record of its own.

use std::collections::VecDeque;
use std::time::Duration;

/// The most invitations of a room.
pub(super) const INVITATIONS_MAX: usize = 100;

/// How long an invitation is valid.
const INVITATION_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

/// The number of bans that a room remembers.
pub(super) const BANS_MAX: usize = 1000;

/// The invitations and bans of a room. Times are those of the retention clock.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Guests {
    /// Accounts, with the time of their invitation, in this order.
    invitations: VecDeque<(u64, Duration)>,
    /// Accounts, in the order of their bans.
    bans: VecDeque<u64>,
}

impl Guests {
    /// Returns guests from their record.
    pub(super) const fn restore(
        invitations: VecDeque<(u64, Duration)>,
        bans: VecDeque<u64>,
    ) -> Self {
        Self { invitations, bans }
    }

    /// Returns the accounts whose invitations are without effect, if there is no room for
    /// one of `account`.
    pub(super) fn stale_invitations(
        &self,
        account: u64,
        now: Duration,
        is_alive: impl Fn(u64) -> bool,
    ) -> Vec<u64> {
        let is_full = self.has_most_invitations(account);
        let others = self.invitations.iter().filter(|_| is_full);
        let stale = others.filter(|(other, at)| !is_valid(*at, now) || !is_alive(*other));
        stale.map(|(other, _)| *other).collect()
    }

    /// Returns whether there is no room for the invitation of an account.
    pub(super) fn has_most_invitations(&self, account: u64) -> bool {
        let others = self.invitations.iter();
        others.filter(|(other, _)| *other != account).count() >= INVITATIONS_MAX
    }

    /// Returns the accounts whose bans must go before another one: all that have ended, or
    /// else the first, if there is no room.
    pub(super) fn stale_bans(&self, is_alive: impl Fn(u64) -> bool) -> Vec<u64> {
        if self.bans.len() < BANS_MAX {
            return Vec::new();
        }
        let bans = self.bans.iter().copied();
        let ended: Vec<_> = bans.filter(|account| !is_alive(*account)).collect();
        if ended.is_empty() {
            self.bans.front().copied().into_iter().collect()
        } else {
            ended
        }
    }

    /// Invites an account, and lifts its ban.
    pub(super) fn invite(&mut self, account: u64, now: Duration) {
        self.remove(account);
        self.invitations.push_back((account, now));
    }

    /// Returns whether an account has a valid invitation.
    pub(super) fn is_invited(&self, account: u64, now: Duration) -> bool {
        let mut invitations = self.invitations.iter();
        invitations.any(|(other, at)| *other == account && is_valid(*at, now))
    }

    /// Removes the invitation of an account. Returns whether there was one.
    pub(super) fn remove_invitation(&mut self, account: u64) -> bool {
        let before = self.invitations.len();
        self.invitations.retain(|(other, _)| *other != account);
        self.invitations.len() < before
    }

    /// Bans an account, and removes its invitation.
    pub(super) fn ban(&mut self, account: u64) {
        self.remove(account);
        self.bans.push_back(account);
    }

    /// Returns whether an account is banned.
    pub(super) fn is_banned(&self, account: u64) -> bool {
        self.bans.contains(&account)
    }

    /// Removes the invitation or the ban of an account.
    pub(super) fn remove(&mut self, account: u64) {
        self.remove_invitation(account);
        self.bans.retain(|other| *other != account);
    }

    /// Returns the invitations, with their times, in this order.
    pub(super) fn invitations(&self) -> impl ExactSizeIterator<Item = (u64, Duration)> {
        self.invitations.iter().copied()
    }

    /// Returns the bans, in their order.
    pub(super) fn bans(&self) -> impl ExactSizeIterator<Item = u64> {
        self.bans.iter().copied()
    }
}

fn is_valid(at: Duration, now: Duration) -> bool {
    now.saturating_sub(at) < INVITATION_VALID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invitation_lifts_a_ban_and_expires() {
        let mut guests = Guests::default();
        guests.ban(7);
        assert!(guests.is_banned(7));
        guests.invite(7, Duration::ZERO);
        assert!(!guests.is_banned(7) && guests.is_invited(7, Duration::ZERO));
        assert!(!guests.is_invited(7, INVITATION_VALID));
        guests.ban(7);
        assert!(guests.is_banned(7) && !guests.is_invited(7, Duration::ZERO));
    }

    #[test]
    fn full_list_names_its_stale_invitations() {
        let mut guests = Guests::default();
        for account in 0..INVITATIONS_MAX as u64 {
            let at = Duration::from_secs(account / 2);
            assert!(!guests.has_most_invitations(account));
            assert_eq!(guests.stale_invitations(account, at, |_| false), [0; 0]);
            guests.invite(account, at);
        }
        assert!(guests.has_most_invitations(1000));
        assert!(!guests.has_most_invitations(5), "it is invited again");
        let stale = |now| guests.stale_invitations(1000, now, |account| account != 7);
        assert_eq!(stale(Duration::ZERO), [7]);
        assert_eq!(stale(INVITATION_VALID), [0, 1, 7]);
    }

    #[test]
    fn first_ban_goes_behind_those_of_ended_accounts() {
        let mut guests = Guests::default();
        (1..BANS_MAX as u64).for_each(|account| guests.ban(account));
        assert_eq!(guests.stale_bans(|_| false), [0; 0]);
        guests.ban(1000);
        assert_eq!(guests.stale_bans(|account| account != 9), [9]);
        assert_eq!(guests.stale_bans(|_| true), [1]);
    }
}
