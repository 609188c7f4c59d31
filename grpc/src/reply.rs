//! Translation of replies: from a [`Reply`] to a [`ChatReply`], and back.

use hark_protocol::{
    ByeReason, Code, Delivery, Failure, Frame, Incoming, Malformed, OkFields, Refusal, RequestId,
    Sequence, UserName,
};

use crate::rooms;
use crate::v1::chat_reply::Reply;
use crate::v1::{
    Bye, ChatReply, Connected, DeleteReply, Error, Listed, Message, Names, NotOk, Ok as Done,
    Opened,
};

/// Encodes a reply of `BiDiChat`. Returns `None` for an empty part of a list; the end of
/// the list suffices.
#[must_use]
pub fn outgoing(id: Option<RequestId>, reply: hark_protocol::Reply) -> Option<ChatReply> {
    let reply = match reply {
        hark_protocol::Reply::Ok(fields) => done(&fields),
        hark_protocol::Reply::List(names) if names.is_empty() => return None,
        hark_protocol::Reply::List(names) => Reply::Names(Names {
            names: texts(&names),
        }),
        hark_protocol::Reply::String(delivery) => Reply::Message(delivery.into()),
        hark_protocol::Reply::Bye(reason) => Reply::Bye(reason.into()),
        hark_protocol::Reply::NotOk(refusal) => Reply::NotOk(refusal.into()),
        hark_protocol::Reply::Error {
            failure,
            explanation,
        } => Reply::Error(Error {
            code: failure.as_str().to_owned(),
            explanation: explanation.into_owned(),
        }),
        hark_protocol::Reply::Room(reply) => rooms::outgoing(reply),
    };
    Some(ChatReply {
        id: id.map_or(0, RequestId::value),
        reply: Some(reply),
    })
}

/// Decodes a reply of `BiDiChat`. A reply that this version does not know is
/// refused.
#[must_use]
pub fn incoming(reply: ChatReply) -> Incoming<hark_protocol::Reply> {
    let message = match reply.reply {
        Some(reply) => reply.try_into(),
        None => Err(bad_reply("unknown kind of reply")),
    };
    Frame::new(RequestId::new(reply.id), message.map_err(Malformed::from))
}

impl TryFrom<Reply> for hark_protocol::Reply {
    type Error = Refusal;

    fn try_from(reply: Reply) -> Result<Self, Refusal> {
        Ok(match reply {
            Reply::Ok(done) => Self::Ok(ok_fields(&done)?),
            Reply::Hello(Opened {
                version,
                frame_bytes_max,
            }) => {
                let bytes = size(u64::from(frame_bytes_max));
                Self::Ok(OkFields::Hello(version, bytes))
            }
            Reply::Connected(Connected {
                queued,
                rooms: None,
                ..
            }) => Self::Ok(OkFields::Queued(queued)),
            Reply::Connected(Connected {
                queued,
                rooms: Some(rooms),
                ..
            }) => Self::Ok(OkFields::Attached(queued, size(rooms))),
            Reply::Deleted(DeleteReply { existed }) => Self::Ok(OkFields::Deleted(existed)),
            Reply::Names(Names { names }) => Self::List(
                names
                    .iter()
                    .map(|name| name.parse())
                    .collect::<Result<_, _>>()?,
            ),
            Reply::Listed(Listed { count, truncated }) => {
                Self::Ok(OkFields::Listed(size(count), truncated))
            }
            Reply::Message(message) => Self::String(message.try_into()?),
            Reply::Bye(Bye { reason }) => match ByeReason::parse(&reason) {
                Some(reason) => Self::Bye(reason),
                None => return Err(bad_reply("unknown reason of a bye")),
            },
            Reply::NotOk(NotOk {
                code, explanation, ..
            }) => Self::NotOk(Refusal::parse(&code, &explanation)),
            Reply::Error(Error { code, explanation }) => match Failure::parse(&code) {
                Some(failure) => Self::Error {
                    failure,
                    explanation: explanation.into(),
                },
                None => return Err(bad_reply("unknown code of an error")),
            },
            reply => Self::Room(rooms::incoming(reply)?),
        })
    }
}

impl From<Delivery> for Message {
    fn from(delivery: Delivery) -> Self {
        Self {
            sequence: delivery.sequence.0,
            sender: delivery
                .sender
                .map_or_else(String::new, |sender| sender.to_string()),
            time_ms: delivery.time_ms,
            text: delivery.text.to_string(),
        }
    }
}

impl TryFrom<Message> for Delivery {
    type Error = Refusal;

    fn try_from(message: Message) -> Result<Self, Refusal> {
        let Message {
            sequence,
            sender,
            time_ms,
            text,
        } = message;
        let sender = if sender.is_empty() {
            None
        } else {
            Some(sender.parse()?)
        };
        Ok(Self {
            sequence: Sequence(sequence),
            sender,
            time_ms,
            text: text.into(),
        })
    }
}

impl From<ByeReason> for Bye {
    fn from(reason: ByeReason) -> Self {
        Self {
            reason: reason.as_str().to_owned(),
        }
    }
}

impl From<Refusal> for NotOk {
    fn from(refusal: Refusal) -> Self {
        let (code, explanation) = refusal.fields();
        Self {
            retry_after_s: refusal.retry_after().map_or(0, |wait| wait.as_secs()),
            code: code.to_owned(),
            explanation: explanation.to_owned(),
        }
    }
}

/// Returns the names as the texts of a message.
#[must_use]
pub fn texts(names: &[UserName]) -> Vec<String> {
    names.iter().map(UserName::to_string).collect()
}

/// Returns the fields of an `ok`, by the first one that is present.
fn ok_fields(done: &Done) -> Result<OkFields, Refusal> {
    Ok(if let Some(sequence) = done.sequence {
        OkFields::Stored(Sequence(sequence))
    } else if let Some(last) = done.last {
        OkFields::Joined(Sequence(last), done.held.unwrap_or_default())
    } else if let Some(room) = &done.room {
        OkFields::Room(room.parse()?)
    } else if let Some(secret) = &done.secret {
        OkFields::Token(secret.parse()?)
    } else if let Some(count) = done.count {
        OkFields::Past(size(count), Sequence(done.oldest.unwrap_or_default()))
    } else {
        OkFields::None
    })
}

fn done(fields: &OkFields) -> Reply {
    let none = Done::default();
    match *fields {
        // A server sends no decoded fields.
        OkFields::None | OkFields::Encoded(_) => Reply::Ok(none),
        OkFields::Stored(sequence) => Reply::Ok(Done {
            sequence: Some(sequence.0),
            ..none
        }),
        OkFields::Joined(last, held) => Reply::Ok(Done {
            last: Some(last.0),
            held: Some(held),
            ..none
        }),
        OkFields::Room(ref room) => Reply::Ok(Done {
            room: Some(room.to_string()),
            ..none
        }),
        OkFields::Token(ref secret) => Reply::Ok(Done {
            secret: Some(secret.expose().to_owned()),
            ..none
        }),
        OkFields::Past(count, oldest) => Reply::Ok(Done {
            count: Some(count as u64),
            oldest: Some(oldest.0),
            ..none
        }),
        OkFields::Hello(version, bytes) => Reply::Hello(Opened {
            version,
            frame_bytes_max: u32::try_from(bytes).unwrap_or(u32::MAX),
        }),
        OkFields::Queued(queued) => Reply::Connected(Connected {
            queued,
            ..Connected::default()
        }),
        OkFields::Attached(queued, rooms) => Reply::Connected(Connected {
            queued,
            rooms: Some(rooms as u64),
            ..Connected::default()
        }),
        OkFields::Deleted(existed) => Reply::Deleted(DeleteReply { existed }),
        OkFields::Listed(count, truncated) => Reply::Listed(Listed {
            count: count as u64,
            truncated,
        }),
    }
}

/// Returns a count of this machine.
fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

pub(crate) fn bad_reply(explanation: &'static str) -> Refusal {
    Refusal::new(Code::BadRequest, explanation)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn delivery(sender: Option<&str>) -> Delivery {
        Delivery {
            sequence: Sequence(u64::MAX),
            sender: sender.map(|sender| sender.parse().unwrap()),
            time_ms: 1_700_000_000_000,
            text: "a, b\n".into(),
        }
    }

    #[test]
    fn every_reply_survives_a_round_trip() {
        use hark_protocol::Reply;

        let names = vec!["bob".parse().unwrap(), "eve".parse().unwrap()];
        let given = [
            Reply::Ok(OkFields::None),
            Reply::Ok(OkFields::Hello(1, 65_536)),
            Reply::Ok(OkFields::Queued(3)),
            Reply::Ok(OkFields::Stored(Sequence(3))),
            Reply::Ok(OkFields::Attached(3, 2)),
            Reply::Ok(OkFields::Joined(Sequence(3), 2)),
            Reply::Ok(OkFields::Room("#team".parse().unwrap())),
            Reply::Ok(OkFields::Past(0, Sequence(0))),
            Reply::Ok(OkFields::Token("hk_secret".parse().unwrap())),
            Reply::Ok(OkFields::Deleted(true)),
            Reply::Ok(OkFields::Deleted(false)),
            Reply::List(names.clone()),
            Reply::List(names),
            Reply::Ok(OkFields::Listed(4, false)),
            Reply::Ok(OkFields::Queued(4)),
            Reply::List(vec!["bob".parse().unwrap()]),
            Reply::Ok(OkFields::Listed(1, true)),
            Reply::String(delivery(None)),
            Reply::String(delivery(Some("eve"))),
            Reply::Bye(ByeReason::TakenOver),
            Reply::Bye(ByeReason::Deleted),
            Reply::Bye(ByeReason::Shutdown),
            Reply::Error {
                failure: Failure::Unavailable,
                explanation: "try again".into(),
            },
        ];
        let refusals = Code::ALL.map(|code| Reply::NotOk(Refusal::new(code, "7 s to wait")));
        let of_rooms = rooms::tests::replies().into_iter().map(Reply::Room);
        for (id, reply) in (1..).zip(given.into_iter().chain(refusals).chain(of_rooms)) {
            let id = RequestId::new(id);
            let bytes = outgoing(id, reply.clone()).unwrap().encode_to_vec();
            assert_eq!(
                incoming(ChatReply::decode(&*bytes).unwrap()),
                Frame::new(id, Ok(reply))
            );
        }
    }

    #[test]
    fn empty_list_is_only_its_end() {
        assert_eq!(outgoing(None, hark_protocol::Reply::List(Vec::new())), None);
        let end = outgoing(None, hark_protocol::Reply::Ok(OkFields::Listed(0, false))).unwrap();
        assert_eq!(
            end.reply,
            Some(Reply::Listed(Listed {
                count: 0,
                truncated: false
            }))
        );
    }

    #[test]
    fn rate_limit_names_its_wait() {
        let refusal =
            Refusal::rate_limited(std::time::Duration::from_secs(7), "too many passwords");
        assert_eq!(NotOk::from(refusal).retry_after_s, 7);
        assert_eq!(
            NotOk::from(Refusal::new(Code::Denied, "7 s")).retry_after_s,
            0
        );
    }

    #[test]
    fn unknown_refusal_code_is_a_refusal() {
        let explanation = "come back at five".to_owned();
        let not_ok = NotOk {
            code: "out-of-tea".to_owned(),
            explanation,
            retry_after_s: 0,
        };
        let message = incoming(ChatReply {
            id: 1,
            reply: Some(Reply::NotOk(not_ok)),
        })
        .message;
        let refusal = Refusal::new(Code::Unknown, "out-of-tea,come back at five");
        assert_eq!(message, Ok(hark_protocol::Reply::NotOk(refusal)));
    }

    #[test]
    fn unknown_reply_is_refused() {
        let unknown = [
            None,
            Some(Reply::Bye(Bye {
                reason: "bored".to_owned(),
            })),
            Some(Reply::Error(Error {
                code: "odd".to_owned(),
                explanation: String::new(),
            })),
        ];
        for reply in unknown {
            assert_eq!(
                incoming(ChatReply { id: 1, reply })
                    .message
                    .unwrap_err()
                    .refusal
                    .code,
                Code::BadRequest
            );
        }
    }
}
