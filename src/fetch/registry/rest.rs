//! Leaving a mirror alone that failed, so that readers do not wait for it again and again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long after the first failure; doubled after each further one.
const FIRST: Duration = Duration::from_secs(10);
/// The longest: a mirror that is back is used again within this time.
const LONGEST: Duration = Duration::from_secs(300);

/// How a mirror does. Shared by all repositories.
#[derive(Debug, Default)]
pub(super) struct Rest(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    until: Option<Instant>,
}

impl Rest {
    /// Whether it may be asked now. After its rest the first who asks finds out how it does, for at most `trial`;
    /// meanwhile the others do without it.
    pub(super) fn may_ask(&self, trial: Duration) -> bool {
        let (mut state, now) = (self.state(), Instant::now());
        match state.until {
            Some(until) if now < until => false,
            Some(_) => {
                state.until = Some(now + trial);
                true
            }
            None => true,
        }
    }

    /// It did what was asked.
    pub(super) fn worked(&self) {
        *self.state() = State::default();
    }

    /// It did not. Returns for how long it is left alone, if that is news.
    pub(super) fn failed(&self) -> Option<Duration> {
        let mut state = self.state();
        let doubled = FIRST.saturating_mul(1 << state.failures.min(8));
        let pause = doubled.min(LONGEST);
        state.until = Some(Instant::now() + pause);
        state.failures = state.failures.saturating_add(1);
        (state.failures == 1).then_some(pause)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longer_it_fails_the_longer_it_rests() {
        let (rest, trial) = (Rest::default(), Duration::from_secs(5));
        assert!(rest.may_ask(trial) && rest.may_ask(trial));
        for (n, seconds) in [10, 20, 40, 80, 160, 300, 300].into_iter().enumerate() {
            assert_eq!(rest.failed().is_some(), n == 0, "told once");
            assert!(!rest.may_ask(trial));
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert!(!rest.may_ask(trial), "{seconds}");
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(rest.may_ask(trial), "{seconds}");
            assert!(!rest.may_ask(trial), "one finds out");
        }
        rest.worked();
        assert!(rest.may_ask(trial) && rest.may_ask(trial));
        assert_eq!(rest.failed(), Some(FIRST));
    }
}
