//! The flags of rooms.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::chat::MayCreateRooms;
use crate::shard::RoomLimits;

/// The flags of rooms.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rooms")]
pub struct RoomArgs {
    /// Who may create rooms: `users`: users that are logged in; `admin`: admins only; `off`:
    /// the server has no commands of rooms, and delivers no room
    #[arg(long, env = "HARKD_ROOMS", value_enum, default_value_t = RoomsArg::Users)]
    pub rooms: RoomsArg,
    /// How long a room keeps its messages, in seconds, unless its owner chooses a time
    #[arg(long, env = "HARKD_ROOM_KEEP", value_name = "SECONDS",
          default_value_t = RoomLimits::DEFAULT.keep.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    pub room_keep: u64,
    /// The longest time that an owner may choose, in seconds; also bounds --room-keep
    #[arg(long, env = "HARKD_ROOM_KEEP_MAX", value_name = "SECONDS",
          default_value_t = RoomLimits::DEFAULT.keep_max.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    pub room_keep_max: u64,
    /// Maximum number of bytes of messages in one room; beyond it, the oldest are removed.
    /// One sender may have a quarter of them
    #[arg(long, env = "HARKD_MAX_ROOM_BYTES", value_name = "BYTES",
          default_value_t = RoomLimits::DEFAULT.room_bytes_max,
          value_parser = clap::value_parser!(u64).range(ROOM_BYTES_MIN..))]
    pub max_room_bytes: u64,
    /// Maximum number of bytes of messages in all rooms; beyond it, the oldest messages of
    /// the largest room are removed
    #[arg(long, env = "HARKD_ROOMS_BYTES", value_name = "BYTES",
          default_value_t = RoomLimits::DEFAULT.all_bytes_max,
          value_parser = clap::value_parser!(u64).range(ROOM_BYTES_MIN..))]
    pub rooms_bytes: u64,
    /// Maximum number of members of one room
    #[arg(long, env = "HARKD_MAX_ROOM_MEMBERS", value_name = "COUNT",
          default_value_t = RoomLimits::DEFAULT.members_max)]
    pub max_room_members: usize,
    /// Maximum number of rooms of one user, without conversations of two
    #[arg(long, env = "HARKD_MAX_USER_ROOMS", value_name = "COUNT",
          default_value_t = RoomLimits::DEFAULT.joined_max)]
    pub max_user_rooms: usize,
    /// Maximum number of rooms that one user owns
    #[arg(long, env = "HARKD_MAX_OWNED_ROOMS", value_name = "COUNT",
          default_value_t = RoomLimits::DEFAULT.owned_max)]
    pub max_owned_rooms: usize,
}

/// The permission to create rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoomsArg {
    /// Users that are logged in.
    Users,
    /// Admins.
    Admin,
    /// No user.
    Off,
}

/// The longest time to keep messages: a hundred years.
const SECONDS_MAX: u64 = 100 * 366 * 24 * 3600;

/// The smallest bound of bytes.
const ROOM_BYTES_MIN: u64 = 1024 * 1024;

impl RoomArgs {
    /// Returns the permission to create rooms.
    #[must_use]
    pub const fn may_create(&self) -> MayCreateRooms {
        match self.rooms {
            RoomsArg::Users => MayCreateRooms::Users,
            RoomsArg::Admin => MayCreateRooms::Admins,
            RoomsArg::Off => MayCreateRooms::Off,
        }
    }

    /// Returns the limits of rooms, which keep no message for longer than `max_age`.
    #[must_use]
    pub const fn limits(&self, max_age: Option<Duration>) -> RoomLimits {
        const fn lower(a: u64, b: u64) -> u64 {
            if a < b { a } else { b }
        }
        let keep_max = match max_age {
            Some(max_age) => lower(self.room_keep_max, max_age.as_secs()),
            None => self.room_keep_max,
        };
        let keep = Duration::from_secs(lower(self.room_keep, keep_max));
        let keep_max = Duration::from_secs(keep_max);
        RoomLimits {
            members_max: self.max_room_members,
            joined_max: self.max_user_rooms,
            owned_max: self.max_owned_rooms,
            room_bytes_max: self.max_room_bytes,
            all_bytes_max: self.rooms_bytes,
            keep,
            keep_max,
        }
    }
}
