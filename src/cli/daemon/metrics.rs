//! `.addonfs/metrics`: OpenMetrics text. The names are API.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::board::Board;
use crate::fetch::store::Store;
use crate::jobs::Jobs;

/// The numbers as they are now.
pub(crate) fn render(board: &Board, jobs: &Jobs, store: &Store) -> String {
    let mut registry = Registry::with_prefix("addonfs");
    let sources: Family<Vec<(String, String)>, Gauge> = Family::default();
    for status in board.statuses().0 {
        let phase = status["phase"].as_str().unwrap_or_default().to_owned();
        sources.get_or_create(&vec![("phase".to_owned(), phase)]).inc();
    }
    registry.register("sources", "Sources by phase", sources);
    let counts = jobs.counts();
    gauge(&mut registry, "runs_running", "Runs whose container runs", counts.running);
    gauge(&mut registry, "runs_queued", "Runs that wait for a slot or an image", counts.queued);
    gauge(&mut registry, "store_bytes", "Bytes of content on disk", store.used_bytes());
    gauge(
        &mut registry,
        "store_quota_bytes",
        "Most bytes of content kept on disk",
        store.options().quota_bytes,
    );
    gauge(
        &mut registry,
        "store_keep_free_bytes",
        "Bytes of the disk left to others",
        store.options().keep_free_bytes,
    );
    gauge(&mut registry, "store_pinned_bytes", "Bytes that pinned images need", store.pinned_bytes());
    let (items, bytes) = store.evicted();
    counter(&mut registry, "store_evictions", "Items evicted since the daemon started", items);
    counter(&mut registry, "store_evicted_bytes", "Bytes evicted since the daemon started", bytes);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter: Counter = Counter::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: impl TryInto<i64>) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value.try_into().unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}
