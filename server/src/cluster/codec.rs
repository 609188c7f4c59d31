//! The encoding of [`Message`]s between servers. Decoding never panics, trusts no length,
//! and accepts only bytes that the encoder produces.
//!
//! A message is the version, [`FORMAT`], and its fields in order. Integers are little
//! endian; a text or a list begins with its length in four bytes; an option or a variant
//! begins with one byte. Texts of a decoded message share the memory of its bytes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use bytestring::ByteString;
use hark_protocol::{Code, DeviceName, RequestId, Sequence, SessionToken, UserName};

use super::ServerId;
use super::administer::{Administer, Administered, Question, Told};
use super::entry::{Claim, ClaimId};
use super::flow::{FlowId, Packet};
use super::message::{
    Answer, Command, Down, Event, Generation, Import, Message, Request, ShardClock, Subscribed, Up,
};
use crate::ledger::{Imported, Malformed};
use crate::store::{
    Account, AccountEntry, Append, Created, DeviceEntry, End, InboxInfo, Message as Text, Outcome,
    Page, PasswordHash, Position, ReadLimit, SendId, ServerDescription, StoreUsage, UserLimits,
};

/// The version of the encoding.
const FORMAT: u8 = 1;

/// Encodes a message.
pub(super) fn encode(message: &Message) -> Bytes {
    let mut to = Vec::with_capacity(512);
    to.push(FORMAT);
    message.put(&mut to);
    to.into()
}

/// Decodes a message.
///
/// # Errors
/// [`Malformed`] for bytes of another version, or that no server sends.
pub(super) fn decode(bytes: Bytes) -> Result<Message, Malformed> {
    let mut rest = bytes;
    if u8::take(&mut rest)? != FORMAT {
        return Err(Malformed);
    }
    let message = Message::take(&mut rest)?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(Malformed)
    }
}

/// A part of a message.
trait Field: Sized {
    fn put(&self, to: &mut Vec<u8>);
    fn take(rest: &mut Bytes) -> Result<Self, Malformed>;
}

/// Encodes a structure as its fields in order.
macro_rules! structures {
    ($($type:ty { $($field:ident),* })*) => { $(
        impl Field for $type {
            fn put(&self, to: &mut Vec<u8>) {
                $(self.$field.put(to);)*
            }

            fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
                Ok(Self { $($field: Field::take(rest)?),* })
            }
        }
    )* };
}

/// Encodes a variant as its number and its fields in order.
macro_rules! variants {
    ($($type:ident { $($tag:literal => $variant:ident $(($($item:ident),*))? $({$($field:ident),*})?),* })*) => { $(
        impl Field for $type {
            fn put(&self, to: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $(($($item),*))? $({$($field),*})? => {
                        to.push($tag);
                        $($($item.put(to);)*)?
                        $($($field.put(to);)*)?
                    })*
                }
            }

            fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
                Ok(match u8::take(rest)? {
                    $($tag => {
                        $($(let $item = Field::take(rest)?;)*)?
                        $($(let $field = Field::take(rest)?;)*)?
                        Self::$variant $(($($item),*))? $({$($field),*})?
                    })*
                    _ => return Err(Malformed),
                })
            }
        }
    )* };
}

variants! {
    Message {
        1 => Heartbeat(shard, claim),
        2 => Released(shard, claim, to),
        3 => Up(shard, flow, up),
        4 => Down(shard, flow, down),
        5 => Sessions(server, sessions),
        6 => Present(server, format),
        7 => Leaving(server),
        8 => Ask(server, id, question),
        9 => Told(server, id, answer)
    }
    Up { 1 => Open, 2 => Packet(packet, sent_at), 3 => End }
    Down { 1 => Opened(clock), 2 => Packet(packet, clock, proven), 3 => End, 4 => Released(sent) }
    Request {
        1 => Create(name, password),
        2 => SetPassword { account, old, new },
        3 => Delete(account),
        4 => LookUp(name),
        5 => Register(account),
        6 => Unregister(account),
        7 => Send(send),
        8 => Subscribe { account, takes_over },
        9 => Resubscribe { account, generation, delivered, acknowledged },
        10 => Unsubscribe(account, generation),
        11 => Read { account, after, limit },
        12 => Acknowledge(account, position),
        13 => Names { after, limit },
        14 => Import(import),
        15 => Administer(request)
    }
    Administer { 1 => SetSuspended { account, is_suspended }, 2 => Inspect(names), 3 => Usage }
    Administered { 1 => Inspected(inboxes), 2 => Usage(usage) }
    Question { 1 => Describe, 2 => KickUser(user), 3 => KickNetwork(network) }
    Told { 1 => Server(description), 2 => Kicked(count) }
    Import {
        1 => Account { name, password, cursor },
        2 => Message { to, message },
        3 => SkipNumbers(number)
    }
    Event {
        1 => Answer(id, answer),
        2 => Delivery(inbox, messages),
        3 => Lagged(inbox),
        4 => Ended(inbox, generation, end),
        5 => AccountEnding(account)
    }
    Answer {
        1 => Created(created),
        2 => Flag(flag),
        3 => Account(entry),
        4 => Sent(outcome),
        5 => Subscribed(subscribed),
        6 => Resubscribed(outcome),
        7 => Page(page),
        8 => Unavailable,
        9 => Names { names, is_complete },
        10 => Imported(imported),
        11 => Suspended,
        12 => Administered(answer)
    }
    Created { 1 => Created, 2 => Exists, 3 => TooMany }
    Imported { 1 => Stored, 2 => Known, 3 => Behind(incarnation), 4 => NoSuchUser }
    End { 1 => TakenOver, 2 => Deleted, 3 => Interrupted }
    Outcome { 1 => Stored(sequence), 2 => Refused(code) }
}

structures! {
    Claim { sequence, id }
    ClaimId { server, number }
    FlowId { server, claim, number }
    ShardClock { running, durable }
    Generation { sequence, place }
    Command { id, request }
    Append { to, sender, allow_anonymous, time_ms, text, send_id, refusal }
    SendId { session, id, in_order, from }
    Subscribed { generation, queued, cursor }
    Account { name, incarnation }
    AccountEntry { account, password, is_suspended, limits }
    UserLimits { queued_messages, queued_bytes, commands, bytes, deliveries }
    Position { sequence, messages, bytes }
    ReadLimit { messages, bytes }
    Page { starts_after, messages, complete }
    Text { position, sender, time_ms, text }
    ServerDescription { version, host, pid, uptime_s, connections }
    StoreUsage { accounts, last_number, live_bytes, file_bytes, free_bytes, is_low_on_space }
    InboxInfo {
        name, has_password, is_suspended, is_receiving, waiting_messages, waiting_bytes,
        acknowledged, last, devices, limits
    }
    DeviceEntry { name, seen_s, waiting }
}

impl<T: Field> Field for Packet<T> {
    fn put(&self, to: &mut Vec<u8>) {
        [self.number, self.credit, self.bytes]
            .iter()
            .for_each(|number| number.put(to));
        self.items.put(to);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        let (number, credit, bytes) = (u64::take(rest)?, u64::take(rest)?, u64::take(rest)?);
        Ok(Self {
            number,
            credit,
            bytes,
            items: Field::take(rest)?,
        })
    }
}

impl Field for u8 {
    fn put(&self, to: &mut Vec<u8>) {
        to.push(*self);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        rest.try_get_u8().map_err(|_| Malformed)
    }
}

impl Field for u32 {
    fn put(&self, to: &mut Vec<u8>) {
        to.put_u32_le(*self);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        rest.try_get_u32_le().map_err(|_| Malformed)
    }
}

impl Field for u64 {
    fn put(&self, to: &mut Vec<u8>) {
        to.put_u64_le(*self);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        rest.try_get_u64_le().map_err(|_| Malformed)
    }
}

impl Field for usize {
    fn put(&self, to: &mut Vec<u8>) {
        (*self as u64).put(to);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        Self::try_from(u64::take(rest)?).map_err(|_| Malformed)
    }
}

impl Field for bool {
    fn put(&self, to: &mut Vec<u8>) {
        u8::from(*self).put(to);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        match u8::take(rest)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

impl Field for Duration {
    fn put(&self, to: &mut Vec<u8>) {
        u64::try_from(self.as_micros()).unwrap_or(u64::MAX).put(to);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        Ok(Self::from_micros(u64::take(rest)?))
    }
}

impl Field for ServerId {
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        Ok(Self(u64::take(rest)?))
    }
}

impl Field for Sequence {
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        Ok(Self(u64::take(rest)?))
    }
}

impl Field for RequestId {
    fn put(&self, to: &mut Vec<u8>) {
        self.value().put(to);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        Self::new(u32::take(rest)?).ok_or(Malformed)
    }
}

impl Field for Code {
    fn put(&self, to: &mut Vec<u8>) {
        put_text(to, self.as_str());
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        Self::parse(&take_text(rest)?).ok_or(Malformed)
    }
}

impl Field for IpAddr {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::V4(address) => {
                to.push(4);
                to.extend_from_slice(&address.octets());
            }
            Self::V6(address) => {
                to.push(6);
                to.extend_from_slice(&address.octets());
            }
        }
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        match u8::take(rest)? {
            4 => Ok(Self::from(take_array::<4>(rest)?)),
            6 => Ok(Self::from(take_array::<16>(rest)?)),
            _ => Err(Malformed),
        }
    }
}

impl Field for ByteString {
    fn put(&self, to: &mut Vec<u8>) {
        put_text(to, self);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        take_text(rest)
    }
}

impl Field for UserName {
    fn put(&self, to: &mut Vec<u8>) {
        put_text(to, self.as_str());
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        take_text(rest)?.parse().map_err(|_| Malformed)
    }
}

impl Field for DeviceName {
    fn put(&self, to: &mut Vec<u8>) {
        put_text(to, self.as_str());
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        take_text(rest)?.parse().map_err(|_| Malformed)
    }
}

impl Field for SessionToken {
    fn put(&self, to: &mut Vec<u8>) {
        put_text(to, self.as_str());
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        take_text(rest)?.parse().map_err(|_| Malformed)
    }
}

impl Field for PasswordHash {
    fn put(&self, to: &mut Vec<u8>) {
        put_text(to, self.as_str());
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        Ok(Self::new(&take_text(rest)?))
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, to: &mut Vec<u8>) {
        self.is_some().put(to);
        self.iter().for_each(|value| value.put(to));
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        bool::take(rest)?.then(|| T::take(rest)).transpose()
    }
}

impl<T: Field, E: Field> Field for Result<T, E> {
    fn put(&self, to: &mut Vec<u8>) {
        self.is_ok().put(to);
        match self {
            Ok(value) => value.put(to),
            Err(error) => error.put(to),
        }
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        if bool::take(rest)? {
            T::take(rest).map(Ok)
        } else {
            E::take(rest).map(Err)
        }
    }
}

impl<T: Field> Field for Box<T> {
    fn put(&self, to: &mut Vec<u8>) {
        T::put(self, to);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        T::take(rest).map(Self::new)
    }
}

impl<T: Field> Field for Arc<T> {
    fn put(&self, to: &mut Vec<u8>) {
        T::put(self, to);
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        T::take(rest).map(Self::new)
    }
}

impl<T: Field> Field for Vec<T> {
    fn put(&self, to: &mut Vec<u8>) {
        (self.len() as u32).put(to);
        self.iter().for_each(|item| item.put(to));
    }

    fn take(rest: &mut Bytes) -> Result<Self, Malformed> {
        let count = u32::take(rest)?;
        // Grows with the items: a length alone allocates nothing.
        (0..count).map(|_| T::take(rest)).collect()
    }
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    (text.len() as u32).put(to);
    to.extend_from_slice(text.as_bytes());
}

fn take_text(rest: &mut Bytes) -> Result<ByteString, Malformed> {
    let length = u32::take(rest)? as usize;
    if length > rest.len() {
        return Err(Malformed);
    }
    ByteString::try_from(rest.split_to(length)).map_err(|_| Malformed)
}

fn take_array<const N: usize>(rest: &mut Bytes) -> Result<[u8; N], Malformed> {
    let mut array = [0; N];
    rest.try_copy_to_slice(&mut array).map_err(|_| Malformed)?;
    Ok(array)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn account() -> Account {
        Account {
            name: "ann".parse().unwrap(),
            incarnation: 7,
        }
    }

    fn position(sequence: u64) -> Position {
        Position {
            sequence: Sequence(sequence),
            messages: 3,
            bytes: 99,
        }
    }

    fn requests() -> Vec<Request> {
        let name: UserName = "böb".parse().unwrap();
        let hash = PasswordHash::new("$argon2id$x");
        let generation = Generation {
            sequence: 5,
            place: 2,
        };
        let send = |from: Option<IpAddr>, refusal| {
            let id = RequestId::new(9).unwrap();
            let send_id = from.map(|from| SendId {
                session: "s".parse().unwrap(),
                id,
                in_order: true,
                from: Some(from),
            });
            let (to, sender, text) = (name.clone(), Some(account()), "a,b\n🦀".into());
            Request::Send(Box::new(Append {
                to,
                sender,
                allow_anonymous: true,
                time_ms: 5,
                text,
                send_id,
                refusal,
            }))
        };
        vec![
            Request::Create(name.clone(), Some(hash.clone())),
            Request::SetPassword {
                account: account(),
                old: None,
                new: hash,
            },
            Request::Delete(account()),
            Request::LookUp(name.clone()),
            Request::Register(account()),
            Request::Unregister(account()),
            send(Some([1, 2, 3, 4].into()), None),
            send(Some([7_u16; 8].into()), Some(Code::TooLarge)),
            send(None, None),
            Request::Subscribe {
                account: account(),
                takes_over: false,
            },
            Request::Resubscribe {
                account: account(),
                generation,
                delivered: position(4),
                acknowledged: position(2),
            },
            Request::Unsubscribe(account(), generation),
            Request::Read {
                account: account(),
                after: position(1),
                limit: ReadLimit {
                    messages: usize::MAX,
                    bytes: 3,
                },
            },
            Request::Acknowledge(account(), position(8)),
            Request::Names {
                after: Some(name),
                limit: 7,
            },
            Request::Names {
                after: None,
                limit: 7,
            },
            Request::Administer(Administer::SetSuspended {
                account: account(),
                is_suspended: true,
            }),
            Request::Administer(Administer::Inspect(vec![account().name])),
            Request::Administer(Administer::Usage),
        ]
    }

    fn imports() -> [Request; 3] {
        let name = account().name;
        let message = Box::new(Text {
            position: position(6),
            sender: None,
            time_ms: 1,
            text: "hi".into(),
        });
        let (password, cursor) = (Some(PasswordHash::new("x")), Sequence(3));
        let to = name.clone();
        let account = Import::Account {
            name,
            password,
            cursor,
        };
        let message = Import::Message { to, message };
        [account, message, Import::SkipNumbers(Sequence(4))].map(Request::Import)
    }

    fn events() -> Vec<Event> {
        let generation = Generation {
            sequence: 5,
            place: 2,
        };
        let text = |sender| {
            Arc::new(Text {
                position: position(6),
                sender,
                time_ms: 1,
                text: "hi".into(),
            })
        };
        let messages = vec![text(None), text(Some("ann".parse().unwrap()))];
        let page = Page {
            starts_after: Some(position(1)),
            messages: messages.clone(),
            complete: true,
        };
        let entry = AccountEntry {
            account: account(),
            password: Some(PasswordHash::new("x")),
            is_suspended: true,
            limits: Some(Arc::new(UserLimits {
                commands: Some(3),
                ..UserLimits::default()
            })),
        };
        let subscribed = Subscribed {
            generation,
            queued: 3,
            cursor: position(3),
        };
        let answers = [
            Answer::Created(Created::TooMany),
            Answer::Flag(true),
            Answer::Account(Some(entry)),
            Answer::Account(None),
            Answer::Sent(Outcome::Stored(Sequence(9))),
            Answer::Sent(Outcome::Refused(Code::QueueFull)),
            Answer::Subscribed(Some(subscribed)),
            Answer::Resubscribed(Ok(true)),
            Answer::Resubscribed(Err(End::Deleted)),
            Answer::Page(page),
            Answer::Imported(Imported::Behind(5)),
            Answer::Names {
                names: vec!["x".parse().unwrap(), "y".parse().unwrap()],
                is_complete: true,
            },
            Answer::Suspended,
            Answer::Administered(Administered::Usage(StoreUsage {
                accounts: 1,
                last_number: 2,
                live_bytes: 3,
                file_bytes: 4,
                free_bytes: Some(5),
                is_low_on_space: true,
            })),
            Answer::Administered(Administered::Inspected(vec![InboxInfo {
                name: account().name,
                has_password: true,
                is_suspended: false,
                is_receiving: true,
                waiting_messages: 1,
                waiting_bytes: 2,
                acknowledged: Sequence(3),
                last: Sequence(4),
                devices: vec![DeviceEntry {
                    name: Some("phone".parse().unwrap()),
                    seen_s: 5,
                    waiting: 1,
                }],
                limits: UserLimits {
                    queued_messages: Some(9),
                    ..UserLimits::default()
                },
            }])),
            Answer::Unavailable,
        ];
        let others = [
            Event::Delivery(7, messages),
            Event::Lagged(7),
            Event::Ended(7, generation, End::TakenOver),
            Event::AccountEnding(account()),
        ];
        answers
            .map(|answer| Event::Answer(4, answer))
            .into_iter()
            .chain(others)
            .collect()
    }

    fn messages() -> Vec<Message> {
        let id = ClaimId {
            server: ServerId(3),
            number: 1,
        };
        let claim = Claim { sequence: 8, id };
        let flow = FlowId {
            server: ServerId(4),
            claim,
            number: 2,
        };
        let clock = ShardClock {
            running: Duration::from_secs(9),
            durable: Duration::from_millis(1),
        };
        let commands = requests().into_iter().chain(imports()).enumerate();
        let items = commands
            .map(|(id, request)| Command {
                id: id as u64,
                request,
            })
            .collect();
        let up = Packet {
            number: 1,
            credit: 2,
            items,
            bytes: 3,
        };
        let down = Packet {
            number: 1,
            credit: 2,
            items: events(),
            bytes: 3,
        };
        vec![
            Message::Heartbeat(1, claim),
            Message::Released(2, claim, None),
            Message::Released(2, claim, Some(ServerId(7))),
            Message::Up(3, flow, Up::Open),
            Message::Up(3, flow, Up::End),
            Message::Up(3, flow, Up::Packet(up, Duration::from_secs(7))),
            Message::Down(3, flow, Down::Opened(clock)),
            Message::Down(3, flow, Down::End),
            Message::Down(3, flow, Down::Packet(down, clock, Duration::from_secs(8))),
            Message::Sessions(ServerId(4), vec!["s".parse().unwrap()]),
            Message::Present(ServerId(4), 1),
            Message::Ask(ServerId(4), 5, Question::Describe),
            Message::Ask(ServerId(4), 5, Question::KickUser(account().name)),
            Message::Ask(ServerId(4), 5, Question::KickNetwork("192.0.2.0/24".into())),
            Message::Told(ServerId(4), 5, Told::Kicked(3)),
            Message::Told(
                ServerId(4),
                5,
                Told::Server(ServerDescription {
                    version: "1".into(),
                    host: "a".into(),
                    pid: 1,
                    uptime_s: 2,
                    connections: 3,
                }),
            ),
        ]
    }

    #[test]
    fn every_message_comes_back() {
        for message in messages() {
            let bytes = encode(&message);
            let decoded = decode(bytes.clone()).unwrap();
            assert_eq!(format!("{decoded:?}"), format!("{message:?}"));
            assert_eq!(encode(&decoded), bytes);
        }
    }

    #[test]
    fn truncated_message_is_malformed() {
        for bytes in messages().iter().map(encode) {
            assert!((0..bytes.len()).all(|end| decode(bytes.slice(..end)).is_err()));
            assert!(decode([&*bytes, &[0]].concat().into()).is_err());
        }
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(
            which in 0..messages().len(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = encode(&messages()[which]).to_vec();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if let Ok(message) = decode(bytes.clone().into()) {
                prop_assert_eq!(encode(&message), bytes);
            }
        }
    }
}
