//! Progress bars for sources that fetch; drawn on a terminal only.

use std::collections::HashMap;
use std::io::IsTerminal as _;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::daemon_status::Status;

/// One bar a fetching source.
#[derive(Debug)]
pub(crate) struct Bars {
    all: Option<MultiProgress>,
    by_source: HashMap<String, ProgressBar>,
}

impl Bars {
    /// Draws on stderr if it is a terminal, and nothing otherwise.
    pub(crate) fn new() -> Self {
        let all = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { all, by_source: HashMap::new() }
    }

    /// Draws the state of every source that fetches, and takes away the bars of those that are done.
    pub(crate) fn show(&mut self, status: &Status) {
        let Some(all) = &self.all else { return };
        for source in &status.sources {
            match source.progress {
                Some(progress) if !source.ready && !source.refused() => {
                    let bar = self
                        .by_source
                        .entry(source.name.clone())
                        .or_insert_with(|| all.add(bar(&source.name, progress.total)));
                    bar.set_length(progress.total);
                    bar.set_position(progress.done);
                }
                _ => {
                    if let Some(bar) = self.by_source.remove(&source.name) {
                        bar.finish_and_clear();
                    }
                }
            }
        }
    }

    /// Takes all bars away.
    pub(crate) fn clear(&mut self) {
        for (_, bar) in self.by_source.drain() {
            bar.finish_and_clear();
        }
    }
}

fn bar(name: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(name.to_owned());
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    bar
}
