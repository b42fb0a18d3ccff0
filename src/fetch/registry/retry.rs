//! When to try again, and after how long: a pure decision, and the loop that obeys it.
//!
//! In: an error, how many attempts have failed, a random number. Out: a delay, or nothing. Knows no HTTP.

use std::time::Duration;

use crate::fetch::error::{Class, FetchError};

/// How patient the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many attempts one request gets, the first included. With the default pauses six attempts span about
    /// eight seconds, well inside a read's deadline.
    pub attempts: u32,
    /// The pause after the first failure; doubled after each further one.
    pub base: Duration,
    /// The longest pause of our own choice.
    pub cap: Duration,
    /// The longest `Retry-After` that is waited for; a longer one ends the attempts, and the error carries it.
    pub patience: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            base: Duration::from_millis(250),
            cap: Duration::from_secs(5),
            patience: Duration::from_secs(60),
        }
    }
}

/// How often an error gets another attempt that is more likely a wrong answer than a passing trouble: one
/// attempt over a new connection tells a broken middle box from a broken registry.
const DOUBTFUL_ATTEMPTS: u32 = 2;

/// The pause before the next attempt; `None` ends the attempts. `failed` counts those made, from 1; `jitter` is
/// in `0.0..1.0`.
pub(super) fn decide(policy: &RetryPolicy, error: &FetchError, failed: u32, jitter: f64) -> Option<Duration> {
    if !error.retryable || failed >= policy.attempts {
        return None;
    }
    match error.class {
        Class::Storage => None,
        Class::NotFound | Class::Unauthorized | Class::Corrupt | Class::Protocol => {
            (failed < DOUBTFUL_ATTEMPTS).then_some(Duration::ZERO)
        }
        Class::Unavailable | Class::Deadline => match error.retry_after {
            // never sooner than asked; spread so that many clients do not come back at once
            Some(asked) if asked <= policy.patience => Some(asked + policy.base.mul_f64(jitter)),
            Some(_) => None,
            None => {
                let doubled = policy.base.saturating_mul(1 << (failed.saturating_sub(1)).min(16));
                let pause = doubled.min(policy.cap);
                Some(pause / 2 + (pause / 2).mul_f64(jitter))
            }
        },
    }
}

/// Waits as [`decide`] says; gives the error back when there is to be no further attempt.
pub(super) async fn pause(policy: &RetryPolicy, error: FetchError, failed: u32) -> Result<(), FetchError> {
    let Some(delay) = decide(policy, &error, failed, rand::random::<f64>()) else {
        return Err(error);
    };
    tracing::debug!(%error, failed, ?delay, "trying again");
    tokio::time::sleep(delay).await;
    Ok(())
}

/// Runs `attempt` until it succeeds or [`decide`] ends it.
pub(super) async fn retried<T, F, A>(policy: &RetryPolicy, mut attempt: F) -> Result<T, FetchError>
where
    F: FnMut() -> A,
    A: Future<Output = Result<T, FetchError>>,
{
    let mut failed = 0;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => {
                failed += 1;
                pause(policy, error, failed).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::error::Side;

    fn error(class: Class, retryable: bool, retry_after: Option<u64>) -> FetchError {
        let mut error = FetchError::new(class, Side::Remote, "x");
        error.retryable = retryable;
        error.retry_after = retry_after.map(Duration::from_secs);
        error
    }

    #[test]
    fn the_decision_table() {
        let policy = RetryPolicy {
            attempts: 4,
            base: Duration::from_millis(100),
            cap: Duration::from_millis(250),
            patience: Duration::from_secs(10),
        };
        let ms = |n| Some(Duration::from_millis(n));
        // class, retryable, retry-after seconds, attempts failed, jitter -> pause
        let table = [
            (Class::Unavailable, true, None, 1, 0.0, ms(50)),
            (Class::Unavailable, true, None, 1, 0.5, ms(75)),
            (Class::Unavailable, true, None, 2, 0.0, ms(100)),
            (Class::Unavailable, true, None, 3, 0.0, ms(125)),
            (Class::Unavailable, true, None, 4, 0.0, None),
            (Class::Unavailable, false, None, 1, 0.0, None),
            (Class::Unavailable, true, Some(2), 1, 0.0, ms(2000)),
            (Class::Unavailable, true, Some(2), 3, 0.5, ms(2050)),
            (Class::Unavailable, true, Some(10), 1, 0.0, ms(10_000)),
            (Class::Unavailable, true, Some(11), 1, 0.0, None),
            (Class::Unavailable, true, Some(2), 4, 0.0, None),
            (Class::Deadline, true, None, 1, 0.0, ms(50)),
            (Class::Deadline, false, None, 1, 0.0, None),
            (Class::Corrupt, true, None, 1, 0.9, ms(0)),
            (Class::Corrupt, true, None, 2, 0.9, None),
            (Class::Protocol, true, None, 1, 0.0, ms(0)),
            (Class::Protocol, true, None, 2, 0.0, None),
            (Class::Protocol, false, None, 1, 0.0, None),
            (Class::Unauthorized, true, None, 1, 0.0, ms(0)),
            (Class::Unauthorized, false, None, 1, 0.0, None),
            (Class::NotFound, false, None, 1, 0.0, None),
            (Class::Storage, true, None, 1, 0.0, None),
        ];
        for (class, retryable, after, failed, jitter, expected) in table {
            let got = decide(&policy, &error(class, retryable, after), failed, jitter);
            assert_eq!(got, expected, "{class:?} {retryable} {after:?} {failed} {jitter}");
        }
    }

    #[test]
    fn a_huge_count_does_not_overflow() {
        let policy = RetryPolicy { attempts: u32::MAX, ..RetryPolicy::default() };
        let error = error(Class::Unavailable, true, None);
        assert_eq!(decide(&policy, &error, u32::MAX - 1, 0.0), Some(policy.cap / 2));
    }
}
