//! Messages as lines: parsing and writing. No state.
//!
//! The format is Maelstrom's
//! (<https://github.com/jepsen-io/maelstrom/blob/main/doc/protocol.md>).

use std::borrow::Cow;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, ErrorCode};
use crate::json::{self, Json};

/// The id of a message, to which a reply refers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MsgId(pub i64);

impl fmt::Display for MsgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A parsed message.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) src: Cow<'a, str>,
    pub(crate) dest: Cow<'a, str>,
    pub(crate) kind: Cow<'a, str>,
    pub(crate) msg_id: Option<MsgId>,
    pub(crate) in_reply_to: Option<MsgId>,
    /// The whole body, an object.
    pub(crate) body: &'a str,
}

/// A malformed line.
#[derive(Debug)]
pub(crate) struct Malformed<'a> {
    pub(crate) why: String,
    /// The request to answer, if the line has one.
    pub(crate) asked: Option<Asked<'a>>,
}

/// The parts of a malformed request that its answer needs.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) src: Cow<'a, str>,
    pub(crate) dest: Cow<'a, str>,
    pub(crate) msg_id: MsgId,
}

#[derive(Deserialize)]
struct RawMessage<'a> {
    #[serde(borrow)]
    src: Option<&'a RawValue>,
    #[serde(borrow)]
    dest: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawHead<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    msg_id: Option<&'a RawValue>,
    #[serde(borrow)]
    in_reply_to: Option<&'a RawValue>,
}

/// Parses a line.
pub(crate) fn parse(line: &[u8]) -> Result<Message<'_>, Malformed<'_>> {
    let unanswerable = |why: String| Malformed { why, asked: None };
    let line = std::str::from_utf8(line).map_err(|error| unanswerable(error.to_string()))?;
    let raw: RawMessage<'_> =
        object(line).map_err(|why| unanswerable(format!("not a message: {why}")))?;
    let src = raw
        .src
        .and_then(string)
        .ok_or_else(|| unanswerable("src is not a string".into()))?;
    // A line typed by hand may omit it.
    let dest = raw.dest.and_then(string).unwrap_or_default();
    let body = raw
        .body
        .ok_or_else(|| unanswerable("it has no body".into()))?
        .get();
    let head: RawHead<'_> =
        object(body).map_err(|why| unanswerable(format!("not a body: {why}")))?;

    let msg_id = head.msg_id.map(integer);
    let in_reply_to = head.in_reply_to.map(integer);
    let malformed = |why: &str, src, dest| {
        // A malformed reply is not answered, or two nodes might answer each
        // other forever.
        let asked = match (msg_id, in_reply_to) {
            (Some(Some(msg_id)), None | Some(None)) => Some(Asked { src, dest, msg_id }),
            _ => None,
        };
        Malformed {
            why: why.into(),
            asked,
        }
    };
    if msg_id == Some(None) {
        return Err(malformed("msg_id is not an integer", src, dest));
    }
    if in_reply_to == Some(None) {
        return Err(malformed("in_reply_to is not an integer", src, dest));
    }
    let Some(kind) = head.kind.and_then(string) else {
        return Err(malformed(
            "the body has no type that is a string",
            src,
            dest,
        ));
    };
    Ok(Message {
        src,
        dest,
        kind,
        msg_id: msg_id.flatten(),
        in_reply_to: in_reply_to.flatten(),
        body,
    })
}

/// Parses an object as a structure; serde alone would accept an array, too.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    if !text.trim_ascii_start().starts_with('{') {
        return Err("it is not an object".into());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Parses a string.
fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = raw.get();
    let inside = text.strip_prefix('"')?.strip_suffix('"')?;
    if inside.contains('\\') {
        return serde_json::from_str(text).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inside))
}

/// Parses an integer of at most 64 bits.
fn integer(raw: &RawValue) -> Option<MsgId> {
    raw.get().parse().ok().map(MsgId)
}

/// The fields of an object, in their order.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// A body without its ids and its end, and therefore the same in each attempt.
#[derive(Debug, Clone)]
pub(crate) struct Body(Vec<u8>);

impl Body {
    /// Writes a body of this type with these fields: a structure, a map, or `()`
    /// for none.
    ///
    /// # Errors
    /// As for [`open_body`].
    pub(crate) fn new(kind: &str, fields: &impl Serialize) -> Result<Self, Error> {
        let mut body = Vec::new();
        open_body(kind, fields, &mut body)?;
        Ok(Self(body))
    }

    /// Copies the body of another node or a client, without its ids.
    ///
    /// # Errors
    /// 12 if it is not an object with one type.
    pub(crate) fn forwarded(body: &Json) -> Result<Self, Error> {
        let malformed = |why: &dyn fmt::Display| {
            Error::new(
                ErrorCode::MalformedRequest,
                format!("this is no body to pass on: {why}"),
            )
        };
        let Fields(fields) = body.parse_borrowed().map_err(|error| malformed(&error))?;
        let mut types = fields.iter().filter(|(key, _)| key == "type");
        match (types.next(), types.next()) {
            (Some((_, value)), None) if string(value).is_some() => {}
            (Some(_), Some(_)) => return Err(malformed(&"it has a type twice")),
            _ => return Err(malformed(&"it has no type that is a string")),
        }
        let mut text = Vec::with_capacity(body.text().len());
        let mut separator: &[u8] = b"{";
        for (key, value) in fields
            .iter()
            .filter(|(key, _)| !matches!(&**key, "msg_id" | "in_reply_to"))
        {
            text.extend_from_slice(separator);
            write_string(key, &mut text);
            text.extend_from_slice(b": ");
            json::write(value, &mut text).map_err(|error| malformed(&error))?;
            separator = b", ";
        }
        Ok(Self(text))
    }

    /// Appends the body except for its end.
    pub(crate) fn open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}

/// Appends a message up to its body.
pub(crate) fn open_message(src: &str, dest: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"src\": ");
    write_string(src, out);
    out.extend_from_slice(b", \"dest\": ");
    write_string(dest, out);
    out.extend_from_slice(b", \"body\": ");
}

/// Appends a body of this type with these fields, except for its end. After an
/// error the caller removes the rest in `out`.
///
/// # Errors
/// 13 if the fields cannot be represented in JSON, are not an object, or have a
/// reserved name.
pub(crate) fn open_body(
    kind: &str,
    fields: &impl Serialize,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let crash = |why: &dyn fmt::Display| {
        Error::new(ErrorCode::Crash, format!("cannot write a {kind}: {why}"))
    };
    out.extend_from_slice(b"{\"type\": ");
    write_string(kind, out);
    out.push(b',');
    let start = out.len();
    let reserved = json::write_fields(fields, out).map_err(|error| crash(&error))?;
    if let Some(name) = reserved {
        return Err(crash(&format_args!(
            "the field name {name} is reserved; choose another"
        )));
    }
    match out.get(start..) {
        Some(b"{}" | b"null") => out.truncate(start - 1),
        Some([b'{', .., b'}']) => {
            // The fields follow the type.
            if let Some(brace) = out.get_mut(start) {
                *brace = b' ';
            }
            out.pop();
        }
        Some([first, ..]) => {
            let found = match first {
                b'[' => "an array",
                b'"' => "a string",
                b't' | b'f' => "a boolean",
                _ => "a number",
            };
            return Err(crash(&format_args!(
                "its fields are {found}; a structure, a map or () is needed"
            )));
        }
        _ => return Err(crash(&"its fields are missing")),
    }
    Ok(())
}

/// Appends the ids, the end of the body and the end of the message.
pub(crate) fn close_message(in_reply_to: Option<MsgId>, msg_id: Option<MsgId>, out: &mut Vec<u8>) {
    if let Some(id) = in_reply_to {
        out.extend_from_slice(b", \"in_reply_to\": ");
        write_id(id, out);
    }
    if let Some(id) = msg_id {
        out.extend_from_slice(b", \"msg_id\": ");
        write_id(id, out);
    }
    out.extend_from_slice(b"}}\n");
}

fn write_id(id: MsgId, out: &mut Vec<u8>) {
    // A number can be represented in JSON, and writing to a `Vec` never fails.
    json::write(&id, out).unwrap_or_default();
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    // A string can be represented in JSON, and writing to a `Vec` never fails.
    json::write(text, out).unwrap_or_default();
}
