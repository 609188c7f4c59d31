//! The messages of `hark.v1.Admin`, from the types of the server.

use hark_grpc::v1;

use super::Administration;
use super::check::CheckReport;
use super::top::{FullInbox, TopUser};
use crate::server::ConnectionInfo;
use crate::store::{DeviceEntry, InboxInfo, RoomInfo, UserLimits};

pub(super) fn connection_info(connection: ConnectionInfo) -> v1::ConnectionInfo {
    v1::ConnectionInfo {
        id: connection.id,
        address: connection.address.to_string(),
        users: connection.users.iter().map(ToString::to_string).collect(),
        age_s: connection.age.as_secs(),
    }
}

pub(super) fn user_info(inbox: InboxInfo) -> v1::UserInfo {
    v1::UserInfo {
        name: inbox.name.to_string(),
        has_password: inbox.has_password,
        is_suspended: inbox.is_suspended,
        is_receiving: inbox.is_receiving,
        waiting_messages: inbox.waiting_messages,
        waiting_bytes: inbox.waiting_bytes,
        acknowledged: inbox.acknowledged.0,
        last_number: inbox.last.0,
        devices: inbox.devices.into_iter().map(device_info).collect(),
        oldest_unread_ms: 0,
        limits: Some(limits_info(&inbox.limits)),
    }
}

fn device_info(device: DeviceEntry) -> v1::DeviceInfo {
    v1::DeviceInfo {
        name: device
            .name
            .map_or_else(String::new, |name| name.to_string()),
        seen_s: device.seen_s,
        waiting_messages: device.waiting,
    }
}

pub(super) const fn limits_info(limits: &UserLimits) -> v1::UserLimits {
    v1::UserLimits {
        queued_messages: limits.queued_messages,
        queued_bytes: limits.queued_bytes,
        commands_per_second: limits.commands,
        bytes_per_second: limits.bytes,
        deliveries_per_second: limits.deliveries,
    }
}

pub(super) const fn user_limits(limits: v1::UserLimits) -> UserLimits {
    UserLimits {
        queued_messages: limits.queued_messages,
        queued_bytes: limits.queued_bytes,
        commands: limits.commands_per_second,
        bytes: limits.bytes_per_second,
        deliveries: limits.deliveries_per_second,
    }
}

pub(super) fn room_info(admin: &Administration, room: RoomInfo) -> v1::RoomInfo {
    let attached = room.name.as_str().parse();
    let attached = attached.map_or(0, |name| admin.store.attached_devices(&name));
    v1::RoomInfo {
        mode: room.mode.as_str().to_owned(),
        members: room.members as u64,
        attached_devices: attached as u64,
        messages: room.messages,
        bytes: room.bytes,
        removed: room.removed.0,
        last_number: room.last.0,
        keep_s: room.keep.as_secs(),
        owners: room.owners.iter().map(ToString::to_string).collect(),
        name: room.name.to_string(),
    }
}

pub(super) fn top_entry(user: TopUser, seconds: u32) -> v1::TopEntry {
    let rate = |count: u64| count as f64 / f64::from(seconds);
    v1::TopEntry {
        user: user.user.map_or_else(String::new, |user| user.to_string()),
        address: user.address.to_string(),
        connections: user.connections,
        requests_per_second: rate(user.used.requests),
        bytes_per_second: rate(user.used.sent_bytes),
        deliveries_per_second: rate(user.used.deliveries),
        ..v1::TopEntry::default()
    }
}

pub(super) fn full_entry(inbox: FullInbox) -> v1::TopEntry {
    v1::TopEntry {
        user: inbox.user.to_string(),
        waiting_messages: inbox.messages,
        waiting_bytes: inbox.bytes,
        ..v1::TopEntry::default()
    }
}

pub(super) fn check_progress(report: CheckReport) -> v1::CheckProgress {
    v1::CheckProgress {
        logs: report.logs,
        messages: report.messages,
        bytes: report.bytes,
        damaged: report.damaged.unwrap_or_default(),
    }
}

/// Returns the resident memory of the process, if the system tells it.
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
