//! `check` on a running server: reads every message of the store, beside traffic. Each block
//! has a checksum, so a damaged one cannot be read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hark_protocol::UserName;
use tokio::sync::OwnedSemaphorePermit;

use super::{Administration, PAGE_MAX};
use crate::store::{Account, History, Page, Point, Position, ReadLimit, Unavailable};

/// The size of one read.
const READ_LIMIT: ReadLimit = ReadLimit {
    messages: 1024,
    bytes: 1 << 20,
};

/// The interval of reports.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// A check that is under way.
pub(super) struct Check {
    admin: Arc<Administration>,
    stage: Stage,
    logs: VecDeque<CheckedLog>,
    report: CheckReport,
    _permit: OwnedSemaphorePermit,
}

/// What the check looks up next.
enum Stage {
    /// The accounts after this name.
    Users(Option<UserName>),
    /// The rooms from this place on.
    Rooms(u64),
    /// Nothing: the last logs are read.
    Done,
    /// The last report was returned.
    Over,
}

/// A log to check.
enum CheckedLog {
    Inbox(Account),
    Room(UserName, History),
}

/// The progress of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CheckReport {
    /// The number of logs that were read.
    pub(super) logs: u64,
    pub(super) messages: u64,
    /// The bytes of their texts.
    pub(super) bytes: u64,
    /// A log that is damaged.
    pub(super) damaged: Option<String>,
}

impl Check {
    /// Returns a check of all logs. The permit allows one at a time.
    pub(super) fn new(admin: Arc<Administration>, permit: OwnedSemaphorePermit) -> Self {
        Self {
            admin,
            stage: Stage::Users(None),
            logs: VecDeque::new(),
            report: CheckReport::default(),
            _permit: permit,
        }
    }

    /// Continues until the next report: of the progress, of a damaged log, or at the end.
    /// `None` after that.
    ///
    /// # Errors
    /// [`Unavailable`] if the store is.
    pub(super) async fn next(&mut self) -> Option<Result<CheckReport, Unavailable>> {
        let began = Instant::now();
        loop {
            let Some(log) = self.logs.pop_front() else {
                match self.stage {
                    Stage::Over => return None,
                    Stage::Done => {
                        self.stage = Stage::Over;
                        return Some(Ok(self.report.clone()));
                    }
                    Stage::Users(_) | Stage::Rooms(_) => {}
                }
                if let Err(unavailable) = self.look_up().await {
                    self.stage = Stage::Over;
                    return Some(Err(unavailable));
                }
                continue;
            };
            let checked = self.read(&log).await;
            self.report.logs += 1;
            if checked.is_err() {
                if !self.admin.store.is_available() {
                    self.stage = Stage::Over;
                    self.logs.clear();
                    return Some(Err(Unavailable));
                }
                return Some(Ok(CheckReport {
                    damaged: Some(log.name().to_owned()),
                    ..self.report.clone()
                }));
            }
            if began.elapsed() >= REPORT_INTERVAL {
                return Some(Ok(self.report.clone()));
            }
        }
    }

    /// Looks up the next logs.
    async fn look_up(&mut self) -> Result<(), Unavailable> {
        let store = Arc::clone(&self.admin.store);
        match &self.stage {
            Stage::Users(after) => {
                let names = store.names(after.as_ref(), PAGE_MAX).await?;
                let last = names.last().cloned();
                for inbox in store.inspect(names).await? {
                    if inbox.waiting_messages == 0 {
                        self.report.logs += 1;
                    } else if let Some(entry) = store.account(&inbox.name).await? {
                        self.logs.push_back(CheckedLog::Inbox(entry.account));
                    }
                }
                self.stage = match last {
                    Some(last) => Stage::Users(Some(last)),
                    None => Stage::Rooms(0),
                };
            }
            Stage::Rooms(from) => {
                let list = store.rooms(*from, PAGE_MAX).await?;
                for room in list.rooms {
                    let Ok(name) = room.name.as_str().parse::<UserName>() else {
                        continue;
                    };
                    if let Some(history) = store.messages(&name).await? {
                        self.logs.push_back(CheckedLog::Room(name, history));
                    }
                }
                self.stage = list.next.map_or(Stage::Done, Stage::Rooms);
            }
            Stage::Done | Stage::Over => {}
        }
        Ok(())
    }

    /// Reads all messages of a log, at half of the speed of the disk.
    async fn read(&mut self, log: &CheckedLog) -> Result<(), Unavailable> {
        let mut after = log.start();
        loop {
            let began = Instant::now();
            let page = self.read_page(log, after).await?;
            for message in &page.messages {
                self.report.messages += 1;
                self.report.bytes += message.text.len() as u64;
            }
            let last = page.messages.last().map(|message| message.position);
            match last.or(page.starts_after) {
                Some(position) if !page.complete => after = position,
                _ => return Ok(()),
            }
            tokio::time::sleep(began.elapsed()).await;
        }
    }

    async fn read_page(&self, log: &CheckedLog, after: Position) -> Result<Page, Unavailable> {
        let store = &self.admin.store;
        match log {
            CheckedLog::Inbox(account) => store.read(account, after, READ_LIMIT).await,
            CheckedLog::Room(_, history) => {
                let after = Point::from(after);
                store.read_room(history.room, after, READ_LIMIT).await
            }
        }
    }
}

impl CheckedLog {
    fn name(&self) -> &str {
        match self {
            Self::Inbox(account) => account.name.as_str(),
            Self::Room(name, _) => name.as_str(),
        }
    }

    fn start(&self) -> Position {
        match self {
            Self::Inbox(_) => Position::default(),
            Self::Room(_, history) => Position {
                sequence: hark_protocol::Sequence(history.after),
                ..Position::default()
            },
        }
    }
}
