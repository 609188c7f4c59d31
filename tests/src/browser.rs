//! A real browser, Debian's Chromium without a window, driven by the WebDriver protocol
//! (W3C) through `curl`: WebDriver crates depend on an HTTP stack of their own.
#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::TIMEOUT;

/// The driver of the browser.
const DRIVER: &str = "chromedriver";

/// The line by which the driver names its port.
const STARTED: &str = "started successfully on port ";

/// The name under which the protocol returns an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The Enter key, as text.
const ENTER: char = '\u{E007}';

/// A browser with a profile of its own, closed on drop.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    /// The URL of its session.
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Opens a browser whose window has this size.
    ///
    /// # Panics
    /// If Chromium or its driver is not installed.
    pub async fn open(width: u32, height: u32) -> Self {
        let (driver, port) = start_driver();
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
            format!("--window-size={width},{height}"),
        ];
        let options = json!({ "goog:chromeOptions": { "args": arguments } });
        let wanted = json!({ "capabilities": { "alwaysMatch": options } });
        let driver_url = format!("http://127.0.0.1:{port}/session");
        let opened = ask("POST", &driver_url, &wanted).await;
        let id = opened["sessionId"].as_str().expect("a session");
        Self {
            session: format!("{driver_url}/{id}"),
            driver,
            _profile: profile,
        }
    }

    /// Loads a page.
    pub async fn load(&self, url: &str) {
        self.command("url", &json!({ "url": url })).await;
    }

    /// Changes the size of the window.
    pub async fn resize(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height });
        self.command("window/rect", &size).await;
    }

    /// Returns the current tab.
    pub async fn tab(&self) -> Value {
        ask("GET", &format!("{}/window", self.session), &Value::Null).await
    }

    /// Opens a tab and changes to it.
    pub async fn open_tab(&self) -> Value {
        let opened = self.command("window/new", &json!({ "type": "tab" })).await;
        let tab = opened["handle"].clone();
        self.change_tab(&tab).await;
        tab
    }

    /// Changes to a tab.
    pub async fn change_tab(&self, tab: &Value) {
        self.command("window", &json!({ "handle": tab })).await;
    }

    /// Runs a script and returns its result.
    ///
    /// # Panics
    /// If the script fails.
    pub async fn run(&self, script: &str) -> Value {
        let call = json!({ "script": script, "args": [] });
        self.command("execute/sync", &call).await
    }

    /// Runs a script that calls its first argument with its result.
    ///
    /// # Panics
    /// If the script fails.
    pub async fn run_async(&self, script: &str) -> Value {
        let call = json!({ "script": script, "args": [] });
        self.command("execute/async", &call).await
    }

    /// Waits until a script returns something true, and returns it.
    ///
    /// # Panics
    /// On a timeout.
    pub async fn wait_for(&self, script: &str) -> Value {
        let until = Instant::now() + TIMEOUT;
        loop {
            let result = self.run(script).await;
            if !matches!(result, Value::Null | Value::Bool(false)) {
                return result;
            }
            if Instant::now() >= until {
                let screen = self.run("return document.body.innerText").await;
                panic!("timeout while waiting for {script} on\n{screen}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Clicks on the element that a selector finds.
    ///
    /// # Panics
    /// If there is none that can be clicked.
    pub async fn click(&self, selector: &str) {
        let element = self.find(selector).await;
        self.command(&format!("{element}/click"), &json!({})).await;
    }

    /// Types into an element, and presses Enter if `enters` is set.
    ///
    /// # Panics
    /// If there is no such element.
    pub async fn fill(&self, selector: &str, text: &str, enters: bool) {
        let element = self.find(selector).await;
        self.command(&format!("{element}/clear"), &json!({})).await;
        let mut text = text.to_owned();
        if enters {
            text.push(ENTER);
        }
        let typed = json!({ "text": text });
        self.command(&format!("{element}/value"), &typed).await;
    }

    async fn find(&self, selector: &str) -> String {
        let locator = json!({ "using": "css selector", "value": selector });
        let found = self.command("element", &locator).await;
        format!("element/{}", found[ELEMENT].as_str().expect("an element"))
    }

    async fn command(&self, name: &str, arguments: &Value) -> Value {
        ask("POST", &format!("{}/{name}", self.session), arguments).await
    }
}

/// Sends a command to the driver and returns its result.
async fn ask(method: &str, url: &str, arguments: &Value) -> Value {
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60"])
        .args(["--request", method]);
    let body = tempfile::NamedTempFile::new().unwrap();
    if !arguments.is_null() {
        // In a file, because a script may be longer than an argument can be.
        std::fs::write(body.path(), arguments.to_string()).unwrap();
        curl.args(["--header", "Content-Type: application/json"])
            .args(["--data-binary", &format!("@{}", body.path().display())]);
    }
    let output = curl.arg(url).output().await.unwrap();
    let mut answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{method} {url}: {error}: {output:?}"));
    let value = answer["value"].take();
    assert!(
        value["error"].is_null(),
        "{method} {url} {arguments}: {value}"
    );
    value
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A killed driver leaves its browser behind.
        let pid = self.driver.id().to_string();
        drop(Command::new("pkill").args(["-TERM", "-P", &pid]).status());
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

fn start_driver() -> (Child, u16) {
    let driver = Command::new(DRIVER)
        .arg("--port=0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut driver = driver.unwrap_or_else(|error| {
        panic!("{DRIVER} does not start ({error}): ./test installs it with Chromium")
    });
    let output = driver.stdout.take().unwrap();
    let port = BufReader::new(output).lines().find_map(|line| {
        let line = line.unwrap();
        let (_, port) = line.split_once(STARTED)?;
        port.trim_end_matches('.').parse().ok()
    });
    (driver, port.expect("the port of the driver"))
}
