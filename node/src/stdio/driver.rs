//! A machine with its output and the clock of the system. It knows no input.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::machine::Machine;

/// The size of the output at which it is written even if more input is
/// available, in bytes.
const WRITE_BYTES: usize = 64 * 1024;

/// The time for which the node waits for sleeping tasks at the end of the input.
const END_WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) struct Driver<W> {
    pub(super) machine: Machine,
    started: Instant,
    output: W,
    buffer: Vec<u8>,
}

impl<W: Write> Driver<W> {
    pub(super) fn new(machine: Machine, output: W) -> Self {
        Self {
            machine,
            started: Instant::now(),
            output,
            buffer: Vec::new(),
        }
    }

    /// Handles whole lines.
    pub(super) fn take_lines(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut now = self.started.elapsed();
        for line in lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.trim_ascii().is_empty())
        {
            self.machine.handle_line(now, line);
            if self.machine.output_bytes() >= WRITE_BYTES {
                self.write()?;
                // The reader of the output may have taken long.
                now = self.started.elapsed();
            }
        }
        Ok(())
    }

    /// Expires everything that is due, and runs the tasks that were woken.
    pub(super) fn run_due(&mut self) {
        self.machine.handle_timeout(self.started.elapsed());
    }

    /// Returns the time until the machine has something to do; `None` if it
    /// waits only for input.
    pub(super) fn time_left(&self) -> Option<Duration> {
        self.machine
            .next_timeout()
            .map(|next| next.saturating_sub(self.started.elapsed()))
    }

    /// Ends the input, and runs the node as long as tasks sleep. `wait`
    /// waits for at most this time, or until a task is woken.
    pub(super) fn finish(
        &mut self,
        mut wait: impl FnMut(Duration) -> io::Result<()>,
    ) -> io::Result<()> {
        let ended = self.started.elapsed();
        self.machine.handle_end(ended);
        while let Some(next) = self.machine.next_timeout()
            && next <= ended + END_WAIT_MAX
        {
            self.flush()?;
            wait(next.saturating_sub(self.started.elapsed()))?;
            self.run_due();
        }
        self.flush()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.write()?;
        self.output.flush()
    }

    fn write(&mut self) -> io::Result<()> {
        self.machine.take_output(&mut self.buffer);
        self.output.write_all(&self.buffer)?;
        self.buffer.clear();
        self.buffer.shrink_to(2 * WRITE_BYTES);
        Ok(())
    }
}
