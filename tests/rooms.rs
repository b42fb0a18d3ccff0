//! Who may import whom (the table in `src/lib.rs`), and `fuser` in one folder only.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

const ROOMS: [&str; 5] = ["policy", "fetch", "jobs", "fs", "cli"];

/// The rooms that a room may import, besides itself.
fn allowed(room: &str) -> &'static [&'static str] {
    match room {
        "policy" => &[],
        "fetch" | "jobs" => &["policy"],
        "fs" => &["policy", "fetch", "jobs"],
        _ => &ROOMS,
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Lines of code, without comments.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim().to_owned()));
    lines.filter(|(_, line)| !line.starts_with("//")).collect()
}

#[test]
fn imports_follow_the_map() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for room in ROOMS {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room), &mut files);
        for file in files {
            for (at, line) in code(&file) {
                for other in ROOMS.into_iter().filter(|other| *other != room) {
                    if line.contains(&format!("crate::{other}::")) {
                        seen += 1;
                        if !allowed(room).contains(&other) {
                            wrong.push(format!("{}:{at}: {room} imports {other}: {line}", file.display()));
                        }
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 50, "only {seen} imports between rooms were found: is the search broken?");
}

#[test]
fn only_the_kernel_folder_says_fuser() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let says = |file: &PathBuf| code(file).iter().any(|(_, line)| line.contains("fuser::"));
    let (inside, outside): (Vec<_>, Vec<_>) =
        files.into_iter().filter(says).partition(|file| file.starts_with(src.join("fs/kernel")));
    assert!(outside.is_empty(), "{outside:?}");
    assert!(!inside.is_empty());
}
