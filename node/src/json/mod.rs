//! JSON on the wire: values that are passed through unchanged, and output in one
//! fixed shape.
//!
//! The shape is that of Python's `json.dumps`: `", "` and `": "` as separators
//! and no other white space, and ASCII only, with other characters as `\uXXXX`
//! in lower case. A value that is passed through keeps the order of its keys and
//! the spelling of its numbers.

mod buffered;
mod raw;

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::{CharEscape, Formatter, Serializer};
use serde_json::value::RawValue;

use crate::fields;

/// Any JSON value, kept as text: the keys keep their order and the numbers
/// their spelling.
///
/// Two values are equal if they differ only in white space and in the escapes of
/// characters; `1` and `1.0` differ, and so do objects whose keys are in a
/// different order. The order of `Ord` is that of the text, so that values can
/// be keys of a map.
///
/// serde buffers the fields of tagged and untagged enums and of flattened
/// structures. In such a place numbers lose their spelling (`1.50` becomes
/// `1.5`), and a number beyond 64 bits becomes a float.
///
/// ```
/// # use hark_node::Json;
/// let json: Json = serde_json::from_str(r#"{"b":1.50,"a":"é"}"#)?;
/// assert_eq!(json.to_string(), r#"{"b": 1.50, "a": "\u00e9"}"#);
/// # serde_json::Result::Ok(())
/// ```
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Converts a value to JSON.
    ///
    /// # Errors
    /// The error of serde if the value cannot be represented in JSON (such as a
    /// map whose keys are not strings).
    pub fn of(value: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::value::to_raw_value(value).map(Self)
    }

    /// Parses the value as a type.
    ///
    /// # Errors
    /// The error of serde if the value is not of that type.
    pub fn parse<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.text())
    }

    /// Returns the text as it was received.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// Parses a whole body, of which `()` takes no field.
    pub(crate) fn parse_fields<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        fields::parse(self.text())
    }

    /// Parses the value as a type that borrows from it.
    pub(crate) fn parse_borrowed<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.text())
    }

    /// Returns the text in the shape of the wire, which is the same for equal
    /// values.
    fn shaped(&self) -> Vec<u8> {
        let mut ascii = Vec::with_capacity(self.text().len());
        write_text(self.text(), &mut ascii);
        ascii
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(raw::Buffered(deserializer)).map(Self)
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text() || self.shaped() == other.shaped()
    }
}

impl Eq for Json {}

impl PartialOrd for Json {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Json {
    fn cmp(&self, other: &Self) -> Ordering {
        self.shaped().cmp(&other.shaped())
    }
}

impl Hash for Json {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.shaped().hash(state);
    }
}

/// The value in the shape of the wire.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.shaped()))
    }
}

/// Names of fields that the library writes.
pub(crate) const RESERVED: [&str; 3] = ["type", "msg_id", "in_reply_to"];

/// Appends `value` to `out` in the shape of the wire. After an error the caller
/// removes the rest in `out`.
pub(crate) fn write(
    value: &(impl Serialize + ?Sized),
    out: &mut Vec<u8>,
) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, Shape::default()))
}

/// As [`write()`]. Returns a reserved name if the value is an object with a field
/// of that name.
pub(crate) fn write_fields(
    fields: &impl Serialize,
    out: &mut Vec<u8>,
) -> serde_json::Result<Option<&'static str>> {
    let reserved = Cell::new(None);
    let shape = Shape {
        reserved: Some(&reserved),
        ..Shape::default()
    };
    fields.serialize(&mut Serializer::with_formatter(out, shape))?;
    Ok(reserved.get())
}

/// The shape of the wire.
#[derive(Default)]
struct Shape<'a> {
    /// The place for a reserved name that is a key of the outermost object.
    reserved: Option<&'a Cell<Option<&'static str>>>,
    /// The number of objects and arrays around the current value.
    depth: usize,
    /// A key of the outermost object begins.
    is_key: bool,
}

impl Shape<'_> {
    fn check_key(&self, key: &str) {
        if let (Some(reserved), Some(name)) = (
            self.reserved,
            RESERVED.into_iter().find(|name| *name == key),
        ) {
            reserved.set(Some(name));
        }
    }
}

impl Formatter for Shape<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        out.write_all(b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        out.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        out.write_all(b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        out.write_all(b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.is_key = self.depth == 1;
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.is_key = false;
        out.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        if std::mem::take(&mut self.is_key) {
            self.check_key(text);
        }
        write_fragment(text, out)
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        self.is_key = false;
        match escape {
            // An escape that is allowed and not needed.
            CharEscape::Solidus => out.write_all(b"/"),
            escape => serde_json::ser::CompactFormatter.write_char_escape(out, escape),
        }
    }

    fn write_raw_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        if self.depth == 0 && self.reserved.is_some() {
            let fields: Result<HashMap<String, IgnoredAny>, _> = serde_json::from_str(text);
            fields
                .into_iter()
                .flat_map(HashMap::into_keys)
                .for_each(|key| self.check_key(&key));
        }
        let mut ascii = Vec::with_capacity(text.len());
        write_text(text, &mut ascii);
        out.write_all(&ascii)
    }
}

/// Appends a part of a string that needs no escape in UTF-8.
fn write_fragment<W: ?Sized + io::Write>(text: &str, out: &mut W) -> io::Result<()> {
    let mut rest = text;
    while let Some(position) = rest.bytes().position(|byte| byte >= 0x7f) {
        let (plain, special) = rest.split_at(position);
        out.write_all(plain.as_bytes())?;
        let mut chars = special.chars();
        if let Some(char) = chars.next() {
            for unit in char.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
        }
        rest = chars.as_str();
    }
    out.write_all(rest.as_bytes())
}

/// Appends valid JSON in the shape of the wire. It needs no stack: outside of
/// strings, white space goes and a separator gets its one space.
fn write_text(text: &str, out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(byte) = rest.bytes().next() {
        rest = match byte {
            b'"' => {
                out.push(b'"');
                write_string(after(rest, 1), out)
            }
            b',' | b':' => {
                out.extend_from_slice(&[byte, b' ']);
                after(rest, 1)
            }
            b' ' | b'\t' | b'\n' | b'\r' => after(rest, 1),
            _ => {
                out.push(byte);
                after(rest, 1)
            }
        };
    }
}

/// Appends a string up to its closing quote, after its opening one, and returns
/// the rest of the text.
fn write_string<'a>(text: &'a str, out: &mut Vec<u8>) -> &'a str {
    let mut rest = text;
    loop {
        let end = rest
            .bytes()
            .position(|byte| matches!(byte, b'"' | b'\\'))
            .unwrap_or(rest.len());
        let (plain, special) = rest.split_at(end);
        // Writing to a `Vec` never fails.
        write_fragment(plain, out).unwrap_or_default();
        if special.starts_with('\\') {
            rest = write_escape(special, out);
        } else {
            out.push(b'"');
            return after(special, 1);
        }
    }
}

/// Appends one escape, and returns the rest of the text.
fn write_escape<'a>(text: &'a str, out: &mut Vec<u8>) -> &'a str {
    let hex = text
        .strip_prefix("\\u")
        .and_then(|digits| u16::from_str_radix(digits.get(..4)?, 16).ok());
    match (hex, text.as_bytes().get(1)) {
        (Some(unit), _) => {
            write_unit(unit, out);
            after(text, 6)
        }
        (None, Some(b'/')) => {
            out.push(b'/');
            after(text, 2)
        }
        (None, escaped) => {
            out.push(b'\\');
            out.extend(escaped);
            after(text, 2)
        }
    }
}

/// Appends one unit of UTF-16. Half of a surrogate pair stays unchanged.
fn write_unit(unit: u16, out: &mut Vec<u8>) {
    let short = match unit {
        0x08 => b'b',
        0x09 => b't',
        0x0a => b'n',
        0x0c => b'f',
        0x0d => b'r',
        0x22 => b'"',
        0x5c => b'\\',
        0x20..0x7f => return out.extend(u8::try_from(unit)),
        _ => return out.extend_from_slice(format!("\\u{unit:04x}").as_bytes()),
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Returns the text after the first `count` bytes.
fn after(text: &str, count: usize) -> &str {
    text.get(count..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn json(text: &str) -> Json {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn equality_ignores_white_space_and_escapes_alone() {
        assert_eq!(
            json(r#"{"a":[1, "\u0041\/"]}"#),
            json(r#"{ "a" : [1,"A/"] }"#)
        );
        for (one, other) in [
            ("1", "1.0"),
            (r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#),
            ("[]", "{}"),
        ] {
            assert_ne!(json(one), json(other));
        }
        let set = BTreeSet::from([json("[1]"), json("[ 1 ]"), json("2")]);
        assert_eq!(set.len(), 2);
        let set = std::collections::HashSet::from([json("[1]"), json("[ 1 ]"), json("2")]);
        assert_eq!(set.len(), 2);
    }

    #[test]
    fn a_value_in_a_tagged_enum_keeps_its_keys() {
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(tag = "type")]
        enum Tagged {
            Put { value: Json },
        }
        #[derive(Debug, Deserialize)]
        struct Flat {
            #[serde(flatten)]
            fields: std::collections::BTreeMap<String, Json>,
        }
        let value = r#"{"b":[1,-2,1.5,true,null,"\u00e9\""],"a":{"c":{}}}"#;
        let tagged: Tagged =
            serde_json::from_str(&format!(r#"{{"type":"Put","value":{value}}}"#)).unwrap();
        let Tagged::Put { value: read } = &tagged;
        assert_eq!(*read, json(value));
        let written = serde_json::to_string(&tagged).unwrap();
        assert_eq!(
            json(&written),
            json(&format!(r#"{{"type":"Put","value":{value}}}"#))
        );
        let flat: Flat = serde_json::from_str(r#"{"x":[1],"y":18446744073709551615}"#).unwrap();
        assert_eq!(flat.fields["y"], json("18446744073709551615"));
        let read: Json = serde_json::from_value(serde_json::json!({"a": 1})).unwrap();
        assert_eq!(read, json(r#"{"a":1}"#));
    }

    #[track_caller]
    fn check(input: &str, expected: &str) {
        let json: Json = serde_json::from_str(input).unwrap();
        assert_eq!(json.to_string(), expected);
        let mut out = Vec::new();
        write(&[&json], &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), format!("[{expected}]"));
    }

    #[test]
    fn values_keep_their_keys_and_numbers() {
        check(
            r#"{"b":1,"a":[ 1.00 ,-0,1e400, 12345678901234567890123]}"#,
            r#"{"b": 1, "a": [1.00, -0, 1e400, 12345678901234567890123]}"#,
        );
        check("[ ]", "[]");
        check("{\t}", "{}");
        check("\"a,b:c  {\"", "\"a,b:c  {\"");
    }

    #[test]
    fn output_is_ascii() {
        check(
            r#""é\u00E9😀\ud83D\uDE00""#,
            r#""\u00e9\u00e9\ud83d\ude00\ud83d\ude00""#,
        );
        check(
            r#""\/\u002f\u0041\u000a\u0022\u005c\n\u0000\u007f""#,
            r#""//A\n\"\\\n\u0000\u007f""#,
        );
        check("\"\u{7f}\"", r#""\u007f""#);
        check(r#"{"\u0061é":"\ud800"}"#, r#"{"a\u00e9": "\ud800"}"#);
    }

    #[test]
    fn serialized_values_have_the_same_shape() {
        let mut out = Vec::new();
        write(&("é\u{7f}😀\n\"/\u{1}", [1, 2], 1.0), &mut out).unwrap();
        let expected = r#"["\u00e9\u007f\ud83d\ude00\n\"/\u0001", [1, 2], 1.0]"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
