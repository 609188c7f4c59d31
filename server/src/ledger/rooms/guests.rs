//! [`Guests`]: the invitations and bans of a room. Accounts are known by their
//! incarnations, so that neither passes to a later account of the same name.

use std::collections::VecDeque;
use std::time::Duration;

/// The most invitations of a room.
const INVITATIONS_MAX: usize = 100;

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

    /// Invites an account, and lifts its ban. Returns false if there are too many
    /// invitations.
    pub(super) fn invite(&mut self, account: u64, now: Duration) -> bool {
        self.invitations
            .retain(|(other, at)| *other != account && is_valid(*at, now));
        if self.invitations.len() >= INVITATIONS_MAX {
            return false;
        }
        self.lift(account);
        self.invitations.push_back((account, now));
        true
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

    /// Bans an account, and removes its invitation. The oldest ban of too many is
    /// forgotten.
    pub(super) fn ban(&mut self, account: u64) {
        self.remove_invitation(account);
        self.lift(account);
        if self.bans.len() >= BANS_MAX {
            self.bans.pop_front();
        }
        self.bans.push_back(account);
    }

    /// Lifts the ban of an account. Returns whether there was one.
    pub(super) fn lift(&mut self, account: u64) -> bool {
        let before = self.bans.len();
        self.bans.retain(|other| *other != account);
        self.bans.len() < before
    }

    /// Returns whether an account is banned.
    pub(super) fn is_banned(&self, account: u64) -> bool {
        self.bans.contains(&account)
    }

    /// Removes an account.
    pub(super) fn remove(&mut self, account: u64) {
        self.remove_invitation(account);
        self.lift(account);
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
        assert!(guests.invite(7, Duration::ZERO));
        assert!(!guests.is_banned(7) && guests.is_invited(7, Duration::ZERO));
        assert!(!guests.is_invited(7, INVITATION_VALID));
        guests.ban(7);
        assert!(guests.is_banned(7) && !guests.is_invited(7, Duration::ZERO));
    }

    #[test]
    fn hundred_invitations_and_thousand_bans_are_kept() {
        let mut guests = Guests::default();
        for account in 0..INVITATIONS_MAX as u64 {
            assert!(guests.invite(account, Duration::ZERO));
        }
        assert!(!guests.invite(1000, Duration::ZERO));
        assert!(guests.invite(5, Duration::ZERO), "it is invited again");
        assert!(guests.invite(1000, INVITATION_VALID), "the others expired");
        for account in 0..=BANS_MAX as u64 {
            guests.ban(account);
        }
        assert!(!guests.is_banned(0), "the oldest ban is forgotten");
        assert!(guests.is_banned(1) && guests.is_banned(BANS_MAX as u64));
    }
}
