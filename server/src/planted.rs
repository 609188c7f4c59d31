//! Planting of bugs by tests, which shows that a suite finds them. Outside of tests, no bug is
//! ever planted, and the branches for them are removed by the compiler.

/// Defines `is_planted` for an enum of bugs, and in tests `fails_with`. A bug is planted on one
/// thread, so tests do not affect each other.
macro_rules! plantable {
    ($bug:ty) => {
        /// Returns whether the test on this thread has planted the bug.
        #[cfg(not(test))]
        pub(super) const fn is_planted(_: $bug) -> bool {
            false
        }

        #[cfg(test)]
        thread_local! {
            static PLANTED: std::cell::Cell<Option<$bug>> = const { std::cell::Cell::new(None) };
        }

        /// Returns whether the test on this thread has planted the bug.
        #[cfg(test)]
        pub(super) fn is_planted(bug: $bug) -> bool {
            PLANTED.get() == Some(bug)
        }

        /// Runs a test with or without a planted bug. Returns whether it failed.
        #[cfg(test)]
        pub(super) fn fails_with<T>(
            bug: impl Into<Option<$bug>>,
            test: impl FnOnce() -> T + std::panic::UnwindSafe,
        ) -> bool {
            PLANTED.set(bug.into());
            let result = std::panic::catch_unwind(test);
            PLANTED.set(None);
            result.is_err()
        }
    };
}

pub(crate) use plantable;
