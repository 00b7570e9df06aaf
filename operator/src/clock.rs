//! The only file that asks for the time.

use jiff::Timestamp;
use std::{
    fmt,
    time::{Duration, Instant},
};

/// Where the time comes from.
pub(crate) trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time of day: for certificates and for what is shown. It may jump.
    fn now(&self) -> Timestamp;
    /// Time since some moment in the past that never jumps: for heartbeats. It goes on while the process is stopped.
    fn uptime(&self) -> Duration;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose uptime starts now.
    pub(crate) fn start() -> SystemClock {
        SystemClock { started: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A clock that a test moves.
    #[derive(Debug)]
    pub(crate) struct HandClock(Mutex<(Timestamp, Duration)>);

    impl HandClock {
        pub(crate) fn at(now: Timestamp) -> HandClock {
            HandClock(Mutex::new((now, Duration::ZERO)))
        }
        /// Both the time of day and the uptime go on.
        pub(crate) fn advance(&self, by: Duration) {
            let mut time = self.0.lock().expect("not poisoned");
            time.0 += by;
            time.1 += by;
        }
    }

    impl Clock for HandClock {
        fn now(&self) -> Timestamp {
            self.0.lock().expect("not poisoned").0
        }
        fn uptime(&self) -> Duration {
            self.0.lock().expect("not poisoned").1
        }
    }
}
