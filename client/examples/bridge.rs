//! A bridge from standard input: sends each line to one user, and ends once all lines
//! are stored.
//!
//! Start `harkd`, then `uptime | cargo run -p hark-client --example bridge
//! 127.0.0.1:3000 bob`. A line does not wait for the answer to the previous one:
//! the client keeps their order, and repeats them after a lost connection.

use std::error::Error;
use std::io::{self, BufRead as _};
use std::thread;
use std::time::Duration;

use hark_client::{Client, Config, Receipt};
use hark_protocol::UserName;
use tokio::sync::mpsc;

/// The maximum number of lines that wait to be sent, and of sends that wait for
/// their outcome.
const LINES_MAX: usize = 256;

/// The longest wait until the connection is closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [server, to] = &*arguments else {
        return Err("usage: bridge HOST:PORT USER".into());
    };
    let to: UserName = to.parse()?;
    let (hark, _) = Client::connect(Config::tcp(server));
    let (lines_in, mut lines) = mpsc::channel(LINES_MAX);
    let (receipts_in, receipts) = mpsc::channel(LINES_MAX);
    // Reading blocks; the thread ends with the input or with this program.
    thread::spawn(move || {
        io::stdin()
            .lock()
            .lines()
            .try_for_each(|line| lines_in.blocking_send(line))
    });
    let send_all = async {
        let receipts_in = receipts_in;
        while let Some(line) = lines.recv().await {
            receipts_in
                .send(hark.send(to.clone(), line?.into()).await?)
                .await?;
        }
        Ok(())
    };
    let ((), count) = tokio::try_join!(send_all, count_stored(receipts))?;
    println!("{count} lines are stored");
    hark.close(CLOSE_WITHIN).await;
    Ok(())
}

/// Waits for the outcome of each send, and returns their number.
async fn count_stored(mut receipts: mpsc::Receiver<Receipt>) -> Result<u64, Box<dyn Error>> {
    let mut count = 0;
    while let Some(receipt) = receipts.recv().await {
        receipt.await?;
        count += 1;
    }
    Ok(count)
}
