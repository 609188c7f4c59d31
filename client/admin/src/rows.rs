//! The columns of what the server lists.

use hark_grpc::v1;
use serde_json::{Map, Value, json};

use crate::table::Table;

/// Returns the table of accounts.
pub(crate) fn users(users: Vec<v1::UserInfo>) -> Table {
    let table = Table::new(&[
        "name",
        "password",
        "suspended",
        "receiving",
        "waiting",
        "waiting_bytes",
        "acknowledged",
        "last_number",
        "devices",
        "seen_s",
        "limits",
    ]);
    let rows = users.into_iter().map(|user| {
        let seen_s = user.devices.iter().map(|device| device.seen_s).max();
        vec![
            user.name.into(),
            user.has_password.into(),
            user.is_suspended.into(),
            user.is_receiving.into(),
            user.waiting_messages.into(),
            user.waiting_bytes.into(),
            user.acknowledged.into(),
            user.last_number.into(),
            user.devices.len().into(),
            seen_s.into(),
            limits(user.limits.unwrap_or_default()),
        ]
    });
    rows.fold(table, Table::row)
}

/// Returns the fields of one account.
pub(crate) fn user(user: v1::UserInfo) -> Table {
    let devices: Vec<Value> = user.devices.into_iter().map(device).collect();
    let oldest_unread_ms = match user.oldest_unread_ms {
        0 => Value::Null,
        time_ms => time_ms.into(),
    };
    Table::new(&[
        "name",
        "password",
        "suspended",
        "receiving",
        "waiting",
        "waiting_bytes",
        "oldest_unread_ms",
        "acknowledged",
        "last_number",
        "devices",
        "limits",
    ])
    .row(vec![
        user.name.into(),
        user.has_password.into(),
        user.is_suspended.into(),
        user.is_receiving.into(),
        user.waiting_messages.into(),
        user.waiting_bytes.into(),
        oldest_unread_ms,
        user.acknowledged.into(),
        user.last_number.into(),
        devices.into(),
        limits(user.limits.unwrap_or_default()),
    ])
}

fn device(device: v1::DeviceInfo) -> Value {
    let name = match device.name {
        name if name.is_empty() => Value::Null,
        name => name.into(),
    };
    json!({ "name": name, "seen_s": device.seen_s, "waiting": device.waiting_messages })
}

/// Returns the limits that are set, by the names of their options.
pub(crate) fn limits(limits: v1::UserLimits) -> Value {
    let all = [
        ("commands", limits.commands_per_second),
        ("bytes", limits.bytes_per_second),
        ("deliveries", limits.deliveries_per_second),
        ("queued_messages", limits.queued_messages),
        ("queued_bytes", limits.queued_bytes),
    ];
    let set = all
        .into_iter()
        .filter_map(|(name, limit)| Some((name.to_owned(), limit?.into())));
    Value::Object(set.collect::<Map<_, _>>())
}

/// Returns the table of rooms.
pub(crate) fn rooms(rooms: Vec<v1::RoomInfo>) -> Table {
    let table = Table::new(&[
        "name",
        "mode",
        "members",
        "attached",
        "messages",
        "bytes",
        "last_number",
    ]);
    let rows = rooms.into_iter().map(|room| {
        vec![
            room.name.into(),
            room.mode.into(),
            room.members.into(),
            room.attached_devices.into(),
            room.messages.into(),
            room.bytes.into(),
            room.last_number.into(),
        ]
    });
    rows.fold(table, Table::row)
}

/// Returns the fields of one room.
pub(crate) fn room(room: v1::RoomInfo) -> Table {
    Table::new(&[
        "name",
        "mode",
        "keep_s",
        "owners",
        "members",
        "attached",
        "messages",
        "bytes",
        "removed",
        "last_number",
    ])
    .row(vec![
        room.name.into(),
        room.mode.into(),
        room.keep_s.into(),
        room.owners.into(),
        room.members.into(),
        room.attached_devices.into(),
        room.messages.into(),
        room.bytes.into(),
        room.removed.into(),
        room.last_number.into(),
    ])
}

/// Returns the table of connections.
pub(crate) fn connections(connections: Vec<v1::ConnectionInfo>) -> Table {
    let table = Table::new(&["id", "address", "users", "age_s"]);
    let rows = connections.into_iter().map(|connection| {
        vec![
            connection.id.into(),
            connection.address.into(),
            connection.users.into(),
            connection.age_s.into(),
        ]
    });
    rows.fold(table, Table::row)
}

/// Returns the table of the users that use the server most.
pub(crate) fn top(entries: Vec<v1::TopEntry>) -> Table {
    let table = Table::new(&[
        "user",
        "address",
        "connections",
        "requests_per_s",
        "bytes_per_s",
        "deliveries_per_s",
    ]);
    let rate = |rate: f64| Value::from((10.0 * rate).round() / 10.0);
    let rows = entries.into_iter().map(|entry| {
        vec![
            entry.user.into(),
            entry.address.into(),
            entry.connections.into(),
            rate(entry.requests_per_second),
            rate(entry.bytes_per_second),
            rate(entry.deliveries_per_second),
        ]
    });
    rows.fold(table, Table::row)
}

/// Returns the table of the fullest inboxes.
pub(crate) fn fullest(entries: Vec<v1::TopEntry>) -> Table {
    let table = Table::new(&["user", "waiting", "waiting_bytes"]);
    let rows = entries.into_iter().map(|entry| {
        vec![
            entry.user.into(),
            entry.waiting_messages.into(),
            entry.waiting_bytes.into(),
        ]
    });
    rows.fold(table, Table::row)
}

/// Returns the table of bans.
pub(crate) fn bans(bans: Vec<v1::BanInfo>) -> Table {
    let table = Table::new(&["network", "until_ms"]);
    let rows = bans.into_iter().map(|ban| {
        let until = match ban.until_ms {
            0 => Value::Null,
            until_ms => until_ms.into(),
        };
        vec![ban.network.into(), until]
    });
    rows.fold(table, Table::row)
}

/// Returns the figures of the server.
pub(crate) fn stats(stats: v1::GetStatsReply) -> Table {
    let state = match (stats.is_draining, stats.is_available, stats.is_low_on_space) {
        (true, ..) => "draining",
        (_, false, _) => "store unavailable",
        (.., true) => "low on space",
        _ => "serving",
    };
    Table::new(&[
        "state",
        "version",
        "pid",
        "uptime_s",
        "connections",
        "accounts",
        "unread_bytes",
        "file_bytes",
        "free_bytes",
        "resident_bytes",
        "last_number",
    ])
    .row(vec![
        state.into(),
        stats.version.into(),
        stats.pid.into(),
        stats.uptime_s.into(),
        stats.connections.into(),
        stats.accounts.into(),
        stats.live_bytes.into(),
        stats.file_bytes.into(),
        stats.free_bytes.into(),
        stats.resident_bytes.into(),
        stats.last_number.into(),
    ])
}
