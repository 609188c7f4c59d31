//! The events of accounts and rooms in the log, at info, so that an operator can audit them. `by` is
//! the user of the connection that acted, absent for an anonymous one.

use std::net::IpAddr;

use hark_protocol::{RoomName, UserName};

use super::accounts::Authenticated;

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
pub(super) fn logged_in(user: &UserName, by_password: bool, address: IpAddr) {
    tracing::info!(%user, by_password, %address, "logged in");
}

/// Logs a wrong password.
pub(super) fn wrong_password(user: &UserName, address: IpAddr) {
    tracing::info!(%user, %address, "wrong password");
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
