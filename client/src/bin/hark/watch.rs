//! `hark watch`: receives into the local history, and runs a command for each new
//! message.

use hark_client::{Event, Message};
use hark_protocol::UserName;

use crate::exec::Script;
use crate::exit::{Exit, Failure};
use crate::history::{Filed, HistoryFile, Received};
use crate::settings::Settings;
use crate::{listen, setup};

/// Receives for `user`, or the user of the settings, until a signal.
pub(crate) async fn run(
    settings: &Settings,
    user: Option<UserName>,
    exec: Option<String>,
) -> Result<Exit, Failure> {
    let user = listen::receiver(settings, user)?;
    let watcher = Watcher {
        file: setup::history(settings)?,
        servers: settings.server.clone(),
        script: exec.map(Script::new),
    };
    listen::receive(settings, user, watcher).await
}

/// The effect of messages.
struct Watcher {
    file: HistoryFile,
    servers: String,
    script: Option<Script>,
}

impl listen::Sink for Watcher {
    async fn take(&mut self, event: Event) -> Result<bool, Failure> {
        match event {
            Event::Message(message) => self.take_message(message).await?,
            Event::Gap(gap) => {
                let (file, servers) = (self.file.clone(), self.servers.clone());
                let (user, missing) = (gap.user.clone(), gap.gap.clone());
                listen::blocking(move || {
                    let history = file.of(&servers, &user)?;
                    history.add_missing(&missing, crate::history::now_ms())
                })
                .await?;
                gap.ack();
            }
            _ => {}
        }
        Ok(false)
    }
}

impl Watcher {
    /// Files a message, acknowledges it, and runs the script if it is new. A script that
    /// fails is reported: the message can be read again.
    async fn take_message(&mut self, message: Message) -> Result<(), Failure> {
        let (file, servers) = (self.file.clone(), self.servers.clone());
        let (user, room) = (message.user.clone(), message.room.clone());
        let delivery = message.delivery.clone();
        let filed = listen::blocking(move || {
            let received = Received {
                room: room.as_ref(),
                delivery: &delivery,
            };
            file.of(&servers, &user)?.add_received(&[received])
        });
        let filed = filed.await?;
        let is_news = |filed: &Filed| filed.is_new && !filed.is_ignored;
        if let Some(script) = &self.script
            && filed.iter().any(is_news)
            && let Err(failure) = script.run(&message).await
        {
            failure.report();
        }
        message.ack().map_err(Failure::local)
    }
}
