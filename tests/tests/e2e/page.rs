//! The web page of the server, in a real browser.

use std::process::{Command, Output};

use hark_protocol::{Reply, Request, RoomRequest};
use hark_tests::{Browser, Harkd, Wire, hark, name};
use serde_json::Value;

/// A browser on the page of a server.
struct Page(Browser);

impl Page {
    /// Opens the page.
    async fn open(server: &Harkd, width: u32) -> Self {
        let browser = Browser::open(width, 700).await;
        let page = Self(browser);
        page.load(server).await;
        page
    }

    async fn load(&self, server: &Harkd) {
        let address = format!("http://{}/", server.address());
        self.0.load(&address).await;
    }

    /// Creates an account by the form and waits for the chat.
    async fn create(&self, user: &str, password: &str) {
        self.0.wait_for(&is_shown("entry")).await;
        self.0.fill("#user", user, false).await;
        self.0.fill("#password", password, false).await;
        self.0.click("#create").await;
        self.0.wait_for(&is_shown("app")).await;
        self.wait_until_online().await;
    }

    async fn wait_until_online(&self) {
        let is_online = "return document.querySelector('#state').textContent === ''";
        self.0.wait_for(is_online).await;
    }

    /// Opens the conversation with a person or a room by the dialog.
    async fn talk(&self, to: &str) {
        self.0.click("#start").await;
        self.0.fill("#target", to, true).await;
        let is_open = format!("return document.querySelector('#title').textContent === '{to}'");
        self.0.wait_for(&is_open).await;
    }

    async fn say(&self, text: &str) {
        self.0.fill("#text", text, true).await;
    }

    /// Submits the form of a log-in.
    async fn log_in(&self, user: &str, password: &str) {
        self.0.wait_for(&is_shown("entry")).await;
        self.0.fill("#user", user, false).await;
        self.0.fill("#password", password, true).await;
    }

    /// Waits for a conversation and opens it.
    async fn choose(&self, title: &str) {
        let script = format!(
            "const all = [...document.querySelectorAll('#conversations button')]; \
             const found = all.find((one) => one.firstChild.textContent === '{title}'); \
             found?.click(); return Boolean(found)"
        );
        self.0.wait_for(&script).await;
    }

    /// Waits until a message or a note on the screen contains this text.
    async fn wait_for_part(&self, text: &str) {
        let script =
            format!("return document.querySelector('#messages').innerText.includes('{text}')");
        self.0.wait_for(&script).await;
    }

    /// Returns the texts on the screen, with the fates of lines that are not stored.
    async fn texts(&self) -> Vec<String> {
        let script = "return [...document.querySelectorAll('#messages .message')].map((one) => \
             [...one.querySelectorAll('.text, .fate')].map((part) => part.innerText).join(' | '))";
        strings(self.0.run(script).await)
    }

    /// Waits until these texts, and no others, are on the screen.
    async fn wait_for_texts(&self, expected: &[&str]) {
        let wanted = serde_json::to_string(expected).unwrap();
        let script = format!(
            "const shown = [...document.querySelectorAll('#messages .message .text')]; \
             return JSON.stringify(shown.map((one) => one.innerText)) === JSON.stringify({wanted}) \
             && !document.querySelector('#messages .pending')"
        );
        self.0.wait_for(&script).await;
    }

    /// Asserts that axe-core finds nothing to complain about.
    async fn check_accessibility(&self) {
        let axe = std::fs::read_to_string(axe_core()).unwrap();
        self.0.run(&axe).await;
        let script = "const done = arguments[arguments.length - 1]; \
             axe.run().then(({ violations }) => done(violations.map(({ id, nodes }) => \
             `${id}: ${nodes.map(({ html }) => html).join(' ')}`)))";
        assert_eq!(
            strings(self.0.run_async(script).await),
            Vec::<String>::new()
        );
    }
}

fn strings(value: Value) -> Vec<String> {
    serde_json::from_value(value).unwrap()
}

fn is_shown(id: &str) -> String {
    format!("return !document.getElementById('{id}').hidden")
}

/// Returns the path of axe-core, which `./test` installs.
fn axe_core() -> std::path::PathBuf {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/lib");
    let found = std::fs::read_dir(&root).unwrap().find_map(|python| {
        let path = python
            .unwrap()
            .path()
            .join("site-packages/axe_core_python/axe.min.js");
        path.exists().then_some(path)
    });
    found.expect("axe-core in .venv: run ./test, which installs it")
}

/// Runs `hark` as a user without a password.
fn hark_as(server: &Harkd, state: &std::path::Path, arguments: &[&str]) -> Output {
    hark(state)
        .args(arguments)
        .env("HARK_SERVER", server.address().to_string())
        .output()
        .unwrap()
}

#[test]
fn page_is_protected_by_its_headers() {
    let server = Harkd::builder().certificate(None).start();
    let output = Command::new("curl")
        .args(["--silent", "--include", "--max-time", "20"])
        .arg(format!("http://{}/", server.address()))
        .output()
        .unwrap();
    let response = String::from_utf8(output.stdout).unwrap();
    let (head, document) = response.split_once("\r\n\r\n").unwrap();
    for header in [
        "HTTP/1.1 200 OK",
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'self'; ",
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
    assert!(document.contains("</html>"));
}

#[tokio::test]
async fn pages_and_terminal_miss_nothing_across_kill() {
    let mut server = Harkd::builder().certificate(None).start();
    let ann = Page::open(&server, 1000).await;
    ann.create("ann", "").await;
    let bob = Page::open(&server, 400).await;
    bob.create("bob", "").await;
    ann.talk("bob").await;
    bob.talk("ann").await;
    ann.say("one").await;
    bob.wait_for_texts(&["one"]).await;
    bob.say("two").await;
    ann.wait_for_texts(&["one", "two"]).await;

    server.kill();
    ann.say("three").await;
    ann.say("four").await;
    let waiting = "return document.querySelectorAll('#messages .pending').length === 2";
    ann.0.wait_for(waiting).await;
    let shown = ann.texts().await;
    assert_eq!(shown[2], "three | waits for the connection");
    // A reload does not lose the lines either.
    let state = ann.0.run("return JSON.stringify(localStorage)").await;
    assert!(state.as_str().unwrap().contains("three"), "{state}");
    let server = server.restart();
    bob.wait_for_texts(&["one", "two", "three", "four"]).await;
    ann.wait_for_texts(&["one", "two", "three", "four"]).await;

    let state = tempfile::tempdir().unwrap();
    let sent = hark_as(
        &server,
        state.path(),
        &["send", "--as", "ann", "bob", "five"],
    );
    assert!(sent.status.success(), "{sent:?}");
    bob.wait_for_texts(&["one", "two", "three", "four", "five"])
        .await;
}

#[tokio::test]
async fn later_tab_takes_over() {
    let server = Harkd::builder().certificate(None).start();
    let ann = Page::open(&server, 1000).await;
    ann.create("ann", "").await;
    let first = ann.0.tab().await;
    let second = ann.0.open_tab().await;
    ann.load(&server).await;
    ann.0.wait_for(&is_shown("app")).await;
    ann.wait_until_online().await;

    ann.0.change_tab(&first).await;
    ann.0
        .wait_for("return document.querySelector('#elsewhere-dialog').open")
        .await;
    ann.0.click("#use-here").await;
    ann.0.wait_for(&is_shown("app")).await;
    ann.wait_until_online().await;
    ann.0.change_tab(&second).await;
    ann.0
        .wait_for("return document.querySelector('#elsewhere-dialog').open")
        .await;
}

#[tokio::test]
async fn log_out_wipes_the_browser() {
    let server = Harkd::builder().certificate(None).start();
    let ann = Page::open(&server, 1000).await;
    ann.create("ann", "").await;
    Wire::connect(server.address()).await.create("bob").await;
    ann.talk("bob").await;
    ann.0.click("#browser").await;
    ann.0.click("#logout-form button[type=submit]").await;
    ann.0.wait_for(&is_shown("entry")).await;
    let kept = ann.0.run("return Object.keys(localStorage)").await;
    assert_eq!(strings(kept), Vec::<String>::new());
}

#[tokio::test]
async fn page_with_a_password_survives_reload_by_a_token() {
    let server = Harkd::builder().certificate(None).start();
    let ann = Page::open(&server, 1000).await;
    ann.create("ann", "hunter2").await;
    let has_token =
        "return (JSON.parse(localStorage['hark.account']).token || '').startsWith('hk_')";
    ann.0.wait_for(has_token).await;
    let kept = ann.0.run("return JSON.stringify(localStorage)").await;
    assert!(!kept.as_str().unwrap().contains("hunter2"), "{kept}");

    ann.load(&server).await;
    ann.0.wait_for(&is_shown("app")).await;
    ann.wait_until_online().await;
    let mut bob = Wire::connect(server.address()).await;
    bob.create("bob").await;
    bob.receive("bob").await;
    ann.talk("bob").await;
    ann.say("by a token").await;
    assert_eq!(&*bob.message().await.text, "by a token");

    // Logging out with the password revokes the token.
    let token = "return JSON.parse(localStorage['hark.account']).token";
    let token = ann.0.run(token).await;
    ann.0.click("#browser").await;
    ann.0.fill("#logout-password", "hunter2", false).await;
    ann.0.click("#logout-form button[type=submit]").await;
    ann.0.wait_for(&is_shown("entry")).await;
    let kept = ann.0.run("return Object.keys(localStorage)").await;
    assert_eq!(strings(kept), Vec::<String>::new());
    let login = Request::Login {
        user: name("ann"),
        password: Some(token.as_str().unwrap().parse().unwrap()),
    };
    let refused = Wire::connect(server.address()).await.ask(login).await;
    assert!(matches!(refused, Reply::NotOk(_)), "{refused:?}");
}

#[tokio::test]
async fn revoked_page_asks_for_the_password() {
    let server = Harkd::builder().certificate(None).start();
    let page = Page::open(&server, 1000).await;
    page.create("ann", "hunter2").await;
    let token = "return JSON.parse(localStorage['hark.account'] ?? '{}').device || null";
    let device = page.0.wait_for(token).await;
    page.load(&server).await;
    page.wait_until_online().await;
    let mut ann = Wire::connect(server.address()).await;
    let login = Request::Login {
        user: name("ann"),
        password: Some("hunter2".parse().unwrap()),
    };
    ann.ok(login).await;
    let token = device.as_str().unwrap().parse().unwrap();
    ann.ok(Request::Room(RoomRequest::Revoke(token))).await;
    page.0.wait_for(&is_shown("entry")).await;
    let error = "return document.querySelector('#entry-error').textContent || null";
    page.0.wait_for(error).await;
}

#[tokio::test]
async fn wrong_password_is_explained() {
    let server = Harkd::builder().certificate(None).start();
    let create = Request::Create {
        user: name("ann"),
        password: Some("secret".parse().unwrap()),
    };
    let created = Wire::connect(server.address()).await.ask(create).await;
    assert!(matches!(created, Reply::Ok(_)), "{created:?}");
    let page = Page::open(&server, 1000).await;
    page.0.fill("#user", "ann", false).await;
    page.0.fill("#password", "wrong", true).await;
    let error = "return document.querySelector('#entry-error').textContent";
    let shown = page.0.wait_for(&format!("{error} || null")).await;
    assert!(!shown.as_str().unwrap().is_empty());
}

#[tokio::test]
async fn every_view_is_accessible_and_fits() {
    let server = Harkd::builder().certificate(None).start();
    let page = Page::open(&server, 1000).await;
    page.check_accessibility().await;
    page.create("ann", "").await;
    let other = "a-very-long-name-that-ends-just-before-its-64th-character-or-so";
    Wire::connect(server.address()).await.create(other).await;
    page.talk(other).await;
    page.say("hello https://example.org/").await;
    page.check_accessibility().await;
    page.0.click("#browser").await;
    page.check_accessibility().await;
    page.0.click("#browser-dialog [data-close]").await;
    page.0.click("#start").await;
    page.check_accessibility().await;
    page.0.click("#start-dialog [data-close]").await;
    page.0.resize(360, 700).await;
    let overflow = "return document.documentElement.scrollWidth - innerWidth";
    assert!(page.0.run(overflow).await.as_i64().unwrap() <= 0);
    page.check_accessibility().await;
}

#[tokio::test]
async fn texts_stay_texts() {
    let server = Harkd::builder().certificate(None).start();
    let page = Page::open(&server, 1000).await;
    page.create("ann", "").await;
    let mut eve = Wire::connect(server.address()).await;
    eve.create("eve").await;
    eve.receive("eve").await;
    let text = "<img src=x onerror=alert(1)><script>alert(2)</script> javascript:alert(3)";
    eve.sent("ann", text).await;
    page.0
        .wait_for("return document.querySelector('#conversations button')")
        .await;
    page.0.click("#conversations button").await;
    page.wait_for_texts(&[text]).await;
    let made = "return document.querySelectorAll('#messages img, #messages script, #messages a')\
                .length";
    assert_eq!(page.0.run(made).await, 0);
}

/// Fills the storage of the origin to the last character, as another page might.
const FILL_STORAGE: &str = "for (let size = 1 << 22; size >= 1; size >>= 1) { \
     try { for (let i = 0; ; i++) localStorage.setItem(`other.${size}.${i}`, 'x'.repeat(size)); } \
     catch {} }";

#[tokio::test]
async fn mistyped_login_keeps_received_messages() {
    let server = Harkd::builder().certificate(None).start();
    let page = Page::open(&server, 1000).await;
    page.create("carol", "hunter2").await;
    let mut anonymous = Wire::connect(server.address()).await;
    anonymous.sent("carol", "the only copy").await;
    page.choose("(anonymous)").await;
    page.wait_for_texts(&["the only copy"]).await;
    // As if the token had been lost, so that the page asks for the password.
    let forget = "const account = JSON.parse(localStorage['hark.account']); delete account.token; \
                  localStorage['hark.account'] = JSON.stringify(account)";
    page.0.run(forget).await;
    page.load(&server).await;
    page.log_in("carl", "hunter2").await;
    let error = "return document.querySelector('#entry-error').textContent || null";
    page.0.wait_for(error).await;
    page.log_in("carol", "hunter2").await;
    page.0.wait_for(&is_shown("app")).await;
    page.choose("(anonymous)").await;
    page.wait_for_texts(&["the only copy"]).await;
}

#[tokio::test]
async fn lines_of_two_tabs_are_stored_once() {
    const TYPED: &str = "window.typed = 0; window.typing = setInterval(() => { \
         if (document.querySelector('#elsewhere-dialog').open) return clearInterval(typing); \
         document.querySelector('#text').value = `first ${window.typed++}`; \
         document.querySelector('#composer').requestSubmit(); }, 20)";
    let server = Harkd::builder().certificate(None).start();
    let page = Page::open(&server, 1000).await;
    page.create("ann", "").await;
    let mut bob = Wire::connect(server.address()).await;
    bob.create("bob").await;
    page.talk("bob").await;
    let first = page.0.tab().await;
    page.0.run(TYPED).await;
    page.0.open_tab().await;
    page.load(&server).await;
    page.0.wait_for(&is_shown("app")).await;
    page.wait_until_online().await;
    page.talk("bob").await;
    page.say("second").await;
    page.0.change_tab(&first).await;
    let count = "return document.querySelector('#elsewhere-dialog').open && window.typed";
    let count = page.0.wait_for(count).await.as_u64().unwrap();
    page.0.click("#use-here").await;
    page.0.wait_for(&is_shown("app")).await;
    page.wait_until_online().await;
    page.choose("bob").await;
    page.wait_for_part("second").await;
    let none_waits = "return !document.querySelector('#messages .fate')";
    page.0.wait_for(none_waits).await;
    // The conversation has each line once.
    let shown = page.texts().await;
    for n in 0..count {
        let line = format!("first {n}");
        let found = shown.iter().filter(|text| **text == line).count();
        assert_eq!(found, 1, "{line}: {shown:?}");
    }
    assert!(shown.contains(&"second".to_owned()), "{shown:?}");
}

#[tokio::test]
async fn control_characters_do_not_stop_the_page() {
    let server = Harkd::builder().certificate(None).start();
    let page = Page::open(&server, 1000).await;
    page.create("ann", "").await;
    let mut anonymous = Wire::connect(server.address()).await;
    let text = "\u{1}".repeat(60_000);
    for _ in 0..16 {
        anonymous.sent("ann", &text).await;
    }
    anonymous.sent("ann", "important").await;
    page.choose("(anonymous)").await;
    page.wait_for_part("important").await;
    page.load(&server).await;
    page.wait_until_online().await;
    page.choose("(anonymous)").await;
    page.wait_for_part("important").await;
}

#[tokio::test]
async fn full_storage_stops_neither_direction() {
    let mut server = Harkd::builder().certificate(None).start();
    let page = Page::open(&server, 1000).await;
    page.create("ann", "").await;
    Wire::connect(server.address()).await.create("bob").await;
    page.talk("bob").await;
    page.0.run(FILL_STORAGE).await;
    let mut anonymous = Wire::connect(server.address()).await;
    anonymous.sent("ann", "not kept").await;
    page.choose("(anonymous)").await;
    page.wait_for_part("storage of this browser is full").await;
    page.wait_for_part("not kept").await;
    page.choose("bob").await;
    server.kill();
    page.say("typed in vain?").await;
    page.wait_for_part("lost in a reload").await;
    let _server = server.restart();
    page.wait_for_texts(&["typed in vain?"]).await;
}

#[tokio::test]
async fn first_line_to_a_person_waits_in_the_outbox() {
    let mut server = Harkd::builder().certificate(None).start();
    let page = Page::open(&server, 1000).await;
    page.create("ann", "").await;
    let mut eve = Wire::connect(server.address()).await;
    eve.create("eve").await;
    eve.receive("eve").await;
    eve.sent("ann", "hello").await;
    page.choose("eve").await;
    page.wait_for_texts(&["hello"]).await;
    server.kill();
    page.say("an answer").await;
    let is_kept = "return JSON.stringify(localStorage).includes('an answer')";
    page.0.wait_for(is_kept).await;
    let _server = server.restart();
    page.wait_for_texts(&["hello", "an answer"]).await;
}

#[tokio::test]
async fn login_waits_while_there_are_too_many_devices() {
    let server = Harkd::builder().certificate(None).start();
    Wire::connect(server.address()).await.create("ann").await;
    let mut devices = Vec::new();
    for n in 0..8 {
        let mut device = Wire::connect(server.address()).await;
        let attach = RoomRequest::Attach {
            user: name("ann"),
            device: format!("device-{n}").parse().unwrap(),
            password: None,
        };
        device.ok(Request::Room(attach)).await;
        devices.push(device);
    }
    let page = Page::open(&server, 1000).await;
    page.log_in("ann", "").await;
    let waits =
        "return document.querySelector('#entry-error').textContent.includes('trying again')";
    page.0.wait_for(waits).await;
    let forget = RoomRequest::Forget(Some("device-0".parse().unwrap()));
    devices.last_mut().unwrap().ok(Request::Room(forget)).await;
    page.0.wait_for(&is_shown("app")).await;
    page.wait_until_online().await;
}
