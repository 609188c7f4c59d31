//! A bot that answers each message with its text in capital letters.
//!
//! Start `harkd`, then `cargo run -p hark-client --example bot 127.0.0.1:3000 shouter`.
//! The bot creates its account if there is none, and runs until another client receives
//! for it. It acknowledges a message after its answer is stored: a bot that is killed in
//! between answers twice, but it leaves no message unanswered.

use std::error::Error;

use hark_client::{Client, Config, Event, Handle, Message, RequestError};
use hark_protocol::{Code, UserName};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [server, name] = &*arguments else {
        return Err("usage: bot HOST:PORT NAME".into());
    };
    let name: UserName = name.parse()?;
    let (hark, mut events) = Client::connect(Config::tcp(server));
    create(&hark, &name).await?;
    hark.connect(name.clone(), None).await?;
    println!("{name} answers");
    while let Some(event) = events.next().await {
        match event {
            Event::Message(message) => answer(&hark, message).await?,
            Event::TakenOver { .. } | Event::IdentityLost { .. } => break,
            // The client reconnects by itself, and `connect` receives no rooms.
            _ => {}
        }
    }
    Ok(())
}

/// Creates the account unless it exists.
async fn create(hark: &Handle, name: &UserName) -> Result<(), RequestError> {
    match hark.create(name.clone(), None).await {
        Err(RequestError::Refused(refusal)) if refusal.code == Code::Exists => Ok(()),
        created => created,
    }
}

/// Answers the message, and acknowledges it once the answer is stored.
async fn answer(hark: &Handle, message: Message) -> Result<(), Box<dyn Error>> {
    // An anonymous sender has no inbox.
    if let Some(sender) = message.delivery.sender.clone() {
        let text = message.delivery.text.to_uppercase();
        match hark.send(sender.clone(), text.into()).await?.await {
            // For example, the sender's inbox is full, or its account was deleted.
            Err(RequestError::Refused(refusal)) => {
                eprintln!("no answer to {sender}: {}", refusal.message())
            }
            sent => drop(sent?),
        }
    }
    Ok(message.ack()?)
}
