//! The chat as a web page: one document with its style and its script, and the policy that
//! allows just these.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderValue, Response};
use sha2::{Digest as _, Sha256};

use super::response::{ResponseBody, full};

/// The page of this version of the server.
static PAGE: LazyLock<Page> = LazyLock::new(Page::assemble);

/// A document and the headers that depend on it.
#[derive(Debug)]
struct Page {
    document: Bytes,
    /// The value of `Content-Security-Policy`.
    policy: String,
}

/// Returns the page.
pub(super) fn response() -> Response<ResponseBody> {
    let mut response = Response::new(full(PAGE.document.clone()));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    if let Ok(policy) = HeaderValue::from_str(&PAGE.policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

impl Page {
    fn assemble() -> Self {
        let style = include_str!("page/page.css");
        let script = concat!(include_str!("page/hark.js"), include_str!("page/page.js"));
        let script = without_comments(script);
        let document = include_str!("page/page.html")
            .replace("{{style}}", style)
            .replace("{{script}}", &script);
        let policy = format!(
            "default-src 'self'; img-src 'self' data:; style-src '{}'; script-src '{}'; \
             frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            hash_source(style),
            hash_source(&script),
        );
        Self {
            document: document.into(),
            policy,
        }
    }
}

/// Returns a script without the lines that are only comments: their readers have the
/// repository.
fn without_comments(script: &str) -> String {
    let is_comment = |line: &str| ["//", "/**", "*"].iter().any(|mark| line.starts_with(mark));
    let lines = script.split_inclusive('\n');
    lines
        .filter(|line| !is_comment(line.trim_start()))
        .collect()
}

/// Returns the source expression for an inline element with this content.
fn hash_source(content: &str) -> String {
    let hash = BASE64_STANDARD.encode(Sha256::digest(content));
    format!("sha256-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest document.
    const DOCUMENT_BYTES_MAX: usize = 60_000;

    #[test]
    fn page_is_small_and_complete() {
        let document = std::str::from_utf8(&PAGE.document).unwrap();
        assert!(document.len() < DOCUMENT_BYTES_MAX, "{}", document.len());
        assert!(!document.contains("{{"));
        let (_, script) = document.split_once("<script type=\"module\">").unwrap();
        let (script, _) = script.split_once("</script>").unwrap();
        assert!(PAGE.policy.contains(&hash_source(script)));
    }

    #[test]
    fn texts_never_become_markup() {
        let document = std::str::from_utf8(&PAGE.document).unwrap();
        for sink in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
        ] {
            assert!(!document.contains(sink), "{sink}");
        }
    }
}
