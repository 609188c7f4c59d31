//! The head of an HTTP/1.1 request, as far as it says where the body ends. The parser is
//! that of hyper, so that both see the same head.

use httparse::{EMPTY_HEADER, Request, Status};

/// The largest head, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 8 * 1024;

/// The maximum number of header fields, as in hyper.
const HEADERS_MAX: usize = 100;

/// The length of the body that follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyLength {
    /// This many bytes.
    Bytes(u64),
    /// An end that only hyper finds: the connection serves no later request.
    Unknown,
    /// Both a length and a transfer encoding: two servers in a row may disagree about the
    /// end of the request ("request smuggling").
    Ambiguous,
}

/// The beginning of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// More bytes are needed.
    Incomplete,
    /// A head of this many bytes.
    Complete {
        /// Its length.
        bytes: usize,
        /// The body.
        length: BodyLength,
    },
    /// Not a head; hyper refuses it.
    Malformed,
}

impl Head {
    /// Parses the head at the beginning of `input`.
    pub(super) fn parse(input: &[u8]) -> Self {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut request = Request::new(&mut headers);
        match request.parse(input) {
            Ok(Status::Partial) => Self::Incomplete,
            Ok(Status::Complete(bytes)) => Self::Complete {
                bytes,
                length: length(request.headers),
            },
            Err(_) => Self::Malformed,
        }
    }
}

fn length(headers: &[httparse::Header<'_>]) -> BodyLength {
    let values = |name: &'static str| {
        headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    };
    let mut lengths = values("content-length");
    let length = lengths.next();
    match (length, values("transfer-encoding").next()) {
        (Some(_), Some(_)) => BodyLength::Ambiguous,
        (None, Some(_)) => BodyLength::Unknown,
        (None, None) => BodyLength::Bytes(0),
        // hyper refuses the lengths that are different or not numbers.
        (Some(length), None) => match parse_length(length) {
            Some(bytes) if lengths.all(|other| other == length) => BodyLength::Bytes(bytes),
            _ => BodyLength::Unknown,
        },
    }
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &str, expected: BodyLength) {
        let head = format!("POST /x HTTP/1.1\r\n{headers}\r\n");
        let parsed = Head::parse(format!("{head}more").as_bytes());
        assert_eq!(
            parsed,
            Head::Complete {
                bytes: head.len(),
                length: expected
            }
        );
    }

    #[test]
    fn body_ends_by_its_length_or_by_hyper() {
        check("", BodyLength::Bytes(0));
        check("Content-Length: 12\r\n", BodyLength::Bytes(12));
        check(
            "content-LENGTH: 7\r\nContent-Length: 7\r\n",
            BodyLength::Bytes(7),
        );
        check(
            "Content-Length: 7\r\nContent-Length: 8\r\n",
            BodyLength::Unknown,
        );
        check("Content-Length: +7\r\n", BodyLength::Unknown);
        check(
            "Content-Length: 99999999999999999999\r\n",
            BodyLength::Unknown,
        );
        check("Transfer-Encoding: chunked\r\n", BodyLength::Unknown);
    }

    #[test]
    fn length_and_encoding_together_are_ambiguous() {
        check(
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            BodyLength::Ambiguous,
        );
        check(
            "transfer-encoding: gzip\r\ncontent-length: 1\r\n",
            BodyLength::Ambiguous,
        );
    }

    #[test]
    fn other_bytes_are_incomplete_or_malformed() {
        assert_eq!(Head::parse(b""), Head::Incomplete);
        assert_eq!(Head::parse(b"GET / HTTP/1.1\r\nHost"), Head::Incomplete);
        assert_eq!(
            Head::parse(b"GET / HTTP/1.1\r\n : x\r\n\r\n"),
            Head::Malformed
        );
        assert_eq!(Head::parse(b"\x81\x05hello"), Head::Malformed);
    }
}
