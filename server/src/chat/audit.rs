//! The events of accounts, tokens and rooms in the log, at info, so that an operator can audit them. `by` is
//! the user of the connection that acted, absent for an anonymous one.

use std::net::IpAddr;

use hark_protocol::message::Scope;
use hark_protocol::{RoomName, TokenName, UserName};

use super::accounts::{Authenticated, Entrance};

fn name(by: Option<&Authenticated>) -> Option<&UserName> {
    by.map(|by| &by.account.name)
}

/// Logs the creation of an account.
pub(super) fn created(user: &UserName, by: Option<&Authenticated>, address: IpAddr) {
    tracing::info!(%user, by = name(by).map(display), %address, "account created");
}

/// Logs the deletion of an account.
pub(super) fn deleted(
    user: &UserName,
    by: Option<&Authenticated>,
    by_admin: bool,
    address: IpAddr,
) {
    tracing::info!(%user, by = name(by).map(display), by_admin, %address, "account deleted");
}

/// Logs a new password of an account.
pub(super) fn password_set(
    user: &UserName,
    by: Option<&Authenticated>,
    by_admin: bool,
    address: IpAddr,
) {
    tracing::info!(%user, by = name(by).map(display), by_admin, %address, "password set");
}

/// Logs a login.
pub(super) fn logged_in(by: &Authenticated, address: IpAddr) {
    let (user, by_password) = (&by.account.name, by.has_password());
    let token = match &by.entrance {
        Entrance::Token(grant) => Some(grant.name()),
        Entrance::Open | Entrance::Password(_) => None,
    };
    tracing::info!(%user, by_password, token = token.map(display), %address, "logged in");
}

/// Logs a wrong password.
pub(super) fn wrong_password(user: &UserName, address: IpAddr) {
    tracing::info!(%user, %address, "wrong password");
}

/// Logs the secret of no token, which came without a user.
pub(super) fn wrong_token(address: IpAddr) {
    tracing::info!(%address, "wrong token");
}

/// Logs the creation of a token.
pub(super) fn token_created(token: &TokenName, scope: &Scope, by: &Authenticated, address: IpAddr) {
    tracing::info!(user = %by.account.name, %token, %scope, %address, "token created");
}

/// Logs the end of a token.
pub(super) fn token_revoked(token: &TokenName, by: &Authenticated, address: IpAddr) {
    tracing::info!(user = %by.account.name, %token, %address, "token revoked");
}

/// Logs that a room was created or changed.
pub(super) fn room_set(room: &RoomName, by: &Authenticated, address: IpAddr) {
    tracing::info!(%room, by = %by.account.name, %address, "room set");
}

/// Logs the deletion of a room.
pub(super) fn room_deleted(room: &RoomName, by: &Authenticated, by_admin: bool, address: IpAddr) {
    tracing::info!(%room, by = %by.account.name, by_admin, %address, "room deleted");
}

/// Logs that a user was expelled from a room.
pub(super) fn expelled(room: &RoomName, user: &UserName, by: &Authenticated, address: IpAddr) {
    tracing::info!(%room, %user, by = %by.account.name, %address, "user expelled");
}

/// Logs a send that was refused because the inbox of its recipient is full.
pub(super) fn queue_full(recipient: &UserName, by: Option<&Authenticated>, address: IpAddr) {
    tracing::info!(%recipient, by = name(by).map(display), %address, "send refused: queue full");
}
