//! Every message is read once and in order under injected faults: a sender and
//! a reader, and a server that drops connections and fails sends at random.
//! Prints the seed of each run.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hark_client::dial::{Dial, Stream};
use hark_client::seen::FileSeenStore;
use hark_client::{Client, Config, Event, Server, Transport};

use super::transport;
use crate::chat::{Chat, Faults};
use crate::conversation::Conversation;
use crate::peer::{quiet, user};

/// Number of readers in a run, one after another.
const READERS: usize = 6;

#[derive(Clone)]
struct ChatDial(Chat, Transport);

impl fmt::Debug for ChatDial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChatDial")
    }
}

impl Dial for ChatDial {
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (chat, transport) = (self.0.clone(), self.1.clone());
        tokio::spawn(async move {
            let conversation = match transport {
                Transport::Native => Some(Conversation::native(theirs)),
                _ => Conversation::grpc(theirs).await,
            };
            if let Some(conversation) = conversation {
                chat.serve(conversation).await;
            }
        });
        Box::pin(async { Ok(Box::new(ours) as Box<dyn Stream>) })
    }
}

/// Returns the configuration for `servers` servers that share one store.
fn config(chat: &Chat, servers: usize) -> Config {
    let dial = Arc::new(ChatDial(chat.clone(), transport()));
    let server = Server { address: "chat:1".into(), dial, transport: transport() };
    Config { servers: vec![server; servers], ..Config::tcp("") }
}

/// Reads `wanted` messages as bob, through several clients in turn that each
/// end abruptly after their share.
async fn read(chat: Chat, servers: usize, directory: std::path::PathBuf, wanted: usize) -> Vec<String> {
    let mut read = Vec::new();
    while read.len() < wanted {
        let seen = Arc::new(FileSeenStore::new(&directory, "chat:1"));
        let config = Config { seen, ..config(&chat, servers) };
        let (handle, mut events) = Client::connect(config);
        handle.connect(user("bob"), None).await.expect("the server has faults, and is there");
        let end = (read.len() + wanted.div_ceil(READERS)).min(wanted);
        while read.len() < end {
            if let Some(Event::Message(message)) = events.next().await {
                read.push(message.delivery.text.to_string());
                message.ack().unwrap();
            }
        }
    }
    read
}

async fn run(seed: u64, servers: usize, messages: usize) {
    println!("seed {seed}, {servers} servers, {messages} messages");
    let chat = Chat::new(seed);
    for name in ["amy", "bob"] {
        chat.add(name, None);
    }
    chat.inject(Faults { drop_one_in: Some(60), unavailable_one_in: Some(80), ..Faults::default() });
    let directory = tempfile::tempdir().unwrap();
    let reading = tokio::spawn(read(chat.clone(), servers, directory.path().to_owned(), messages));
    let (handle, events) = Client::connect(config(&chat, servers));
    drop(events);
    handle.login(user("amy"), None).await.unwrap();
    let mut receipts = Vec::new();
    for n in 0..messages {
        receipts.push(handle.send(user("bob"), n.to_string().into()).await.unwrap());
    }
    for receipt in receipts {
        receipt.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    quiet(&handle).await;
    let expected: Vec<String> = (0..messages).map(|n| n.to_string()).collect();
    assert_eq!(chat.stored("bob"), expected, "seed {seed}: what was stored");
    let read = tokio::time::timeout(Duration::from_secs(3600), reading).await;
    let read = read.unwrap_or_else(|_| panic!("seed {seed}: the reader waits for ever")).unwrap();
    assert_eq!(read, expected, "seed {seed}: what was read");
}

#[tokio::test(start_paused = true)]
async fn every_message_is_read_once_in_order() {
    // Sends in flight and remembered outcomes have a limit of 1,024.
    for (servers, messages) in [(1, 1_200), (3, 400)] {
        run(rand::random(), servers, messages).await;
    }
}

mod long {
    use super::run;

    #[tokio::test(start_paused = true)]
    async fn every_message_of_long_runs_is_read_once_in_order() {
        for servers in [1, 1, 1, 2, 3] {
            run(rand::random(), servers, 2_000).await;
        }
    }
}
