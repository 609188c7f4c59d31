//! Senders to a room: paced by its deliveries, or one message after another.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{DRAINING, MEASURING, Progress, STALLED_AFTER, Sender};

/// The pause between two looks at the deliveries.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// Keeps messages in flight: those that the members together do not have yet.
pub(super) async fn keep_delivering(
    mut senders: Vec<Sender>,
    in_flight: usize,
    members: usize,
    progress: &Progress,
) -> anyhow::Result<Vec<u32>> {
    let (mut sent, mut last_change) = (0, Instant::now());
    loop {
        let delivered = progress.delivered.load(Ordering::Relaxed) / members as u64;
        if progress.phase() < DRAINING {
            let due = (delivered + in_flight as u64).saturating_sub(sent);
            let now_ns = progress.clock.now_ns();
            for _ in 0..due {
                let index = (sent % senders.len() as u64) as usize;
                senders.get_mut(index).context("no senders")?.say(now_ns)?;
                sent += 1;
            }
            if due > 0 {
                senders.iter_mut().for_each(Sender::said);
            }
        } else if senders.iter().all(|sender| sender.sent == sender.accepted) {
            return Ok(senders.iter().map(|sender| sender.accepted).collect());
        }
        exchange(&mut senders, progress, &mut last_change).await?;
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Sends the next message once all members have the former one.
pub(super) async fn send_one_by_one(
    mut sender: Sender,
    members: usize,
    progress: &Progress,
) -> anyhow::Result<Vec<u32>> {
    while progress.phase() < DRAINING {
        let started = Instant::now();
        sender.say(progress.clock.now_ns())?;
        sender.said();
        while sender.accepted < sender.sent {
            sender.connection.turn().await?;
            sender.count(progress)?;
            ensure!(started.elapsed() < STALLED_AFTER, "a send is not accepted");
        }
        let accepted_ns = progress.clock.now_ns();
        let due = u64::from(sender.sent) * members as u64;
        while progress.delivered.load(Ordering::Acquire) < due {
            ensure!(
                started.elapsed() < STALLED_AFTER,
                "a member does not get a message"
            );
            std::thread::sleep(LOOK_EVERY);
        }
        let last_ns = progress.last_ns.load(Ordering::Acquire);
        if progress.phase() == MEASURING {
            let mut spans = progress
                .spans_ns
                .lock()
                .map_err(|_| anyhow::anyhow!("a panic"))?;
            spans.push(last_ns.saturating_sub(accepted_ns));
        }
    }
    Ok(vec![sender.accepted])
}

/// Writes to all senders and reads from them.
pub(super) async fn exchange(
    senders: &mut [Sender],
    progress: &Progress,
    last_change: &mut Instant,
) -> anyhow::Result<()> {
    // Lets the runtime update the readiness of the connections.
    tokio::task::yield_now().await;
    let is_quiet = senders.iter().all(|sender| sender.sent == sender.accepted);
    for sender in &mut *senders {
        sender.connection.write()?;
        sender.connection.read()?;
        if sender.connection.received.accepted > 0 || is_quiet {
            *last_change = Instant::now();
        }
        sender.count(progress)?;
    }
    ensure!(
        last_change.elapsed() < STALLED_AFTER,
        "sends are not accepted"
    );
    Ok(())
}
