//! The rules for the bell and for notifications: for messages to the user alone and
//! mentions, not for a conversation that is being read, and at most once a second.

/// Time between two alerts, in milliseconds.
const EVERY_MS: u64 = 1_000;

/// The alerts so far.
#[derive(Debug, Default)]
pub(crate) struct Alerts {
    last_ms: Option<u64>,
    /// Messages since the last alert that had none of their own.
    suppressed: u64,
}

impl Alerts {
    /// Records a message that deserves an alert. Returns the number of messages that
    /// an alert now stands for; `None` if there was one within the last second.
    pub(crate) fn alert(&mut self, now_ms: u64) -> Option<u64> {
        let is_due = self
            .last_ms
            .is_none_or(|last| now_ms < last || now_ms - last >= EVERY_MS);
        if !is_due {
            self.suppressed += 1;
            return None;
        }
        self.last_ms = Some(now_ms);
        Some(std::mem::take(&mut self.suppressed) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_at_most_one_a_second() {
        let mut alerts = Alerts::default();
        let given: Vec<_> = (0..25)
            .filter_map(|step| alerts.alert(5_000 + step * 100))
            .collect();
        assert_eq!(given, [1, 10, 10]);
        assert_eq!(alerts.alert(10), Some(5), "the clock was set back");
    }
}
