//! A node on two file descriptors, on one thread: with one message in flight,
//! no other thread must be woken between input and output.

use std::fs::File;
use std::io::{self, Read as _, Write, pipe};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::LINE_BYTES_MAX;
use super::driver::Driver;
use super::lines::Lines;

/// Runs a node to the end of its input.
pub(super) fn run(mut driver: Driver<File>, mut input: File) -> io::Result<()> {
    let mut woken = Woken::new(&mut driver)?;
    let mut lines = Lines::new(LINE_BYTES_MAX);
    let end = loop {
        driver.flush()?;
        let is_ready = match wait(Some(&input), &mut woken, driver.time_left()) {
            Ok(is_ready) => is_ready,
            Err(error) => break Err(error),
        };
        if is_ready {
            match lines.read(&mut input) {
                Ok(Some(block)) => driver.take_lines(block)?,
                Ok(None) => break Ok(()),
                Err(error) if is_transient(&error) => {}
                Err(error) => break Err(error),
            }
        }
        driver.run_due();
    };
    driver.finish(|time| wait(None, &mut woken, Some(time)).map(drop))?;
    end
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

/// Waits for input, for another thread that has woken a task, or for this time.
/// Returns whether there is input.
fn wait(input: Option<&File>, woken: &mut Woken, time: Option<Duration>) -> io::Result<bool> {
    // A time beyond the range of the system counts as no limit.
    let time = time.and_then(|time| Timespec::try_from(time).ok());
    let (is_woken, is_ready) = {
        let mut fds = vec![PollFd::new(&woken.reader, PollFlags::IN)];
        fds.extend(input.map(|input| PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN)));
        match poll(&mut fds, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = fds.iter().map(|fd| !fd.revents().is_empty());
        (
            events.next().unwrap_or_default(),
            events.next().unwrap_or_default(),
        )
    };
    if is_woken {
        woken.take()?;
    }
    Ok(is_ready)
}

/// The signal of other threads that they have woken a task.
struct Woken {
    reader: io::PipeReader,
    /// A byte is in the pipe.
    is_set: Arc<AtomicBool>,
}

impl Woken {
    fn new(driver: &mut Driver<File>) -> io::Result<Self> {
        let (reader, mut writer) = pipe()?;
        let is_set = Arc::new(AtomicBool::new(false));
        let signal = Arc::clone(&is_set);
        driver.machine.on_wake(move || {
            if !signal.swap(true, Ordering::AcqRel)
                && let Err(error) = writer.write_all(&[0])
            {
                tracing::error!(%error, "cannot wake the node");
            }
        });
        Ok(Self { reader, is_set })
    }

    fn take(&mut self) -> io::Result<()> {
        self.reader.read_exact(&mut [0])?;
        self.is_set.store(false, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{BufRead as _, BufReader};
    use std::os::fd::OwnedFd;
    use std::task::Poll;
    use std::thread;

    use super::*;
    use crate::machine::Machine;
    use crate::node::Node;
    use crate::request::Request;

    const LINES: &[u8] =
        br#"{"src":"c0","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1"]}}
{"src":"c1","body":{"type":"wait","msg_id":2}}
"#;

    /// `wait` is answered when another thread wakes its task.
    fn program(node: &Node<()>) {
        node.handle("wait", async |_, _: Request<()>| {
            let mut waker = None;
            poll_fn(|cx| {
                if waker.is_some() {
                    return Poll::Ready(());
                }
                let own = cx.waker().clone();
                waker = Some(thread::spawn(move || {
                    thread::sleep(Duration::from_millis(10));
                    own.wake();
                }));
                Poll::Pending
            })
            .await;
            Ok(())
        });
    }

    #[test]
    fn another_thread_wakes_a_node_that_waits_for_input() {
        let ((input, mut keyboard), (screen, output)) = (pipe().unwrap(), pipe().unwrap());
        let node = thread::spawn(move || {
            let machine = Machine::new(program, 0);
            let (input, output) = (OwnedFd::from(input), OwnedFd::from(output));
            run(Driver::new(machine, output.into()), input.into())
        });
        keyboard.write_all(LINES).unwrap();
        let answers: Vec<String> = BufReader::new(screen)
            .lines()
            .take(2)
            .map(Result::unwrap)
            .collect();
        assert!(answers[1].contains("wait_ok"), "{answers:?}");
        drop(keyboard);
        node.join().unwrap().unwrap();
    }
}
