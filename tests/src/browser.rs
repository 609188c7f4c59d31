//! A real browser, driven through WebDriver: Debian's Chromium, without a window.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use fantoccini::key::Key;
use fantoccini::wd::Capabilities;
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::TIMEOUT;

/// The driver of the browser.
const DRIVER: &str = "chromedriver";

/// The line by which the driver names its port.
const STARTED: &str = "started successfully on port ";

/// A browser with a profile of its own, closed on drop.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    page: Client,
    profile: TempDir,
}

impl Browser {
    /// Opens a browser whose window has this size.
    ///
    /// # Panics
    /// If Chromium or its driver is not installed.
    pub async fn open(width: u32, height: u32) -> Self {
        let (driver, port) = start_driver();
        let profile = tempfile::tempdir().unwrap();
        let page = open_page(port, profile.path(), width, height).await;
        Self {
            driver,
            page,
            profile,
        }
    }

    /// Returns the connection to the driver.
    #[must_use]
    pub const fn page(&self) -> &Client {
        &self.page
    }

    /// Returns the folder of its profile.
    #[must_use]
    pub fn profile(&self) -> &Path {
        self.profile.path()
    }

    /// Runs a script and returns its result.
    ///
    /// # Panics
    /// If the script fails.
    pub async fn run(&self, script: &str) -> Value {
        let result = self.page.execute(script, Vec::new()).await;
        result.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Runs a script that calls its first argument with its result.
    ///
    /// # Panics
    /// If the script fails.
    pub async fn run_async(&self, script: &str) -> Value {
        let result = self.page.execute_async(script, Vec::new()).await;
        result.unwrap_or_else(|error| panic!("{script}: {error}"))
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
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Clicks on the element that a selector finds.
    ///
    /// # Panics
    /// If there is none that can be clicked.
    pub async fn click(&self, selector: &str) {
        let found = self.page.find(Locator::Css(selector)).await.unwrap();
        found.click().await.unwrap();
    }

    /// Types into an element, and presses Enter if `enters` is set.
    ///
    /// # Panics
    /// If there is no such element.
    pub async fn fill(&self, selector: &str, text: &str, enters: bool) {
        let found = self.page.find(Locator::Css(selector)).await.unwrap();
        found.clear().await.unwrap();
        found.send_keys(text).await.unwrap();
        if enters {
            let enter = char::from(Key::Enter).to_string();
            found.send_keys(&enter).await.unwrap();
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser when it is asked to; a killed one leaves it behind.
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

async fn open_page(port: u16, profile: &Path, width: u32, height: u32) -> Client {
    let arguments = [
        "--headless=new".to_owned(),
        "--no-sandbox".to_owned(),
        "--disable-gpu".to_owned(),
        "--disable-background-networking".to_owned(),
        "--disable-component-update".to_owned(),
        "--disable-sync".to_owned(),
        format!("--user-data-dir={}", profile.display()),
        format!("--window-size={width},{height}"),
    ];
    let mut capabilities = Capabilities::new();
    capabilities.insert(
        "goog:chromeOptions".to_owned(),
        json!({ "args": arguments }),
    );
    ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
        .capabilities(capabilities)
        .connect(&format!("http://127.0.0.1:{port}"))
        .await
        .unwrap()
}
