//! `addonfs cache ls`.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::json;

use super::human;
use super::inventory::{CachedImage, Inventory, Presence};
use super::place::Place;
use crate::cli::daemon::clock;
use crate::cli::table;

pub(super) fn run(place: &Place, as_json: bool) -> anyhow::Result<ExitCode> {
    let inventory = Inventory::take(place)?;
    let mut out = std::io::stdout().lock();
    if as_json {
        let json = json!({
            "cache_dir": place.cache,
            "bytes": inventory.total,
            "quota_bytes": place.quota(),
            "other_bytes": inventory.others,
            "images": inventory.images,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows: Vec<[String; 8]> = inventory.images.iter().map(row).collect();
    if inventory.others > 0 {
        let mut row: [String; 8] = std::array::from_fn(|_| String::new());
        [row[0], row[1], row[3]] = ["-".to_owned(), "(of no image)".to_owned(), human(inventory.others)];
        rows.push(row);
    }
    let header = ["SOURCE", "IMAGE", "LAYERS", "ON DISK", "SHARED", "STATE", "LAST USE", "PINNED"];
    out.write_all(table::layout(header, &rows).as_bytes())?;
    writeln!(out, "{} of {} in {}", human(inventory.total), human(place.quota()), place.cache.display())?;
    Ok(ExitCode::SUCCESS)
}

fn row(image: &CachedImage) -> [String; 8] {
    let sources = match image.sources.as_slice() {
        [] => "-".to_owned(),
        names => names.join(","),
    };
    let state = match image.presence {
        Presence::Complete => "complete",
        Presence::Partial => "partial",
        Presence::Absent => "absent",
    };
    // To the second: 2026-01-02T03:04:05Z.
    let used = image.last_use_ms.map(clock::text).unwrap_or_default();
    let used = used.split_once('.').map_or(used.clone(), |(second, _)| format!("{second}Z"));
    let short: String = image.image.to_string().chars().take("sha256:".len() + 12).collect();
    let pinned = if image.pinned { "pinned" } else { "" };
    let (bytes, shared) = (human(image.bytes), human(image.shared_bytes));
    [sources, short, image.layers.to_string(), bytes, shared, state.to_owned(), used, pinned.to_owned()]
}
