//! For whose sake bytes are fetched: a read that somebody accounts for carries a [`Meter`] with it, down to the flight that
//! it is the first to board.

use std::future::Future;
use std::sync::Arc;

/// Told how many bytes came from a registry.
pub type Meter = Arc<dyn Fn(u64) + Send + Sync>;

tokio::task_local! {
    static METER: Meter;
}

/// Does `work`, and tells `meter` of what it was the first to fetch.
pub async fn counted<T>(meter: Option<Meter>, work: impl Future<Output = T>) -> T {
    match meter {
        Some(meter) => METER.scope(meter, work).await,
        None => work.await,
    }
}

/// The meter of the task that runs now.
pub(super) fn current() -> Option<Meter> {
    METER.try_with(Arc::clone).ok()
}
