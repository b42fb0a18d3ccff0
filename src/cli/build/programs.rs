//! What an add-on's entrypoints read at each start, whatever they do then: their programs, the interpreters and libraries of
//! those, and what the programs import. It lies together at the start of the layers, the programs before all else.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::first::{Image, Place};
use super::python::{self, Surroundings};
use super::tree::{Kind, Tree};
use crate::fs::image::program::{MAX_ARGUMENT, MAX_FILES, MAX_SIZE, find_program, needs};

/// Bytes of what one entrypoint imports, up to which it is worth fetching for whoever mounts the image and may start
/// another: less than half a second of a slow line.
const MAX_AHEAD: u64 = 4 << 20;

/// What is read of an image at every start, whatever it starts: by whoever makes the container, to know the user's name and
/// groups (docs/semantics.md), and by glibc's loader.
const EVERY: [&str; 3] = ["etc/passwd", "etc/group", "etc/ld.so.cache"];

/// The paths of what entrypoints start with, in the order of need. What is in none of the trees is of a base image, or
/// found by the program itself.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// What every mount fetches.
    pub ahead: Vec<PathBuf>,
    /// What lies together, for the jobs that read it.
    pub together: Vec<PathBuf>,
}

/// What `commands` start.
pub(super) fn of(commands: &[Vec<String>], trees: &[Tree], around: Surroundings<'_>) -> Starts {
    let image = Image::new(trees);
    let mut programs =
        Programs { image: &image, path: around.path, order: Vec::new(), seen: BTreeSet::new() };
    for command in commands {
        programs.start(command);
    }
    let mut ahead = programs.order;
    let mut together = Vec::new();
    for command in commands {
        let imported = python::imported(&image, command, around);
        let bytes: u64 = imported.iter().map(|place| size(&image, *place)).sum();
        if bytes <= MAX_AHEAD { &mut ahead } else { &mut together }.extend(imported);
    }
    let paths = |places: Vec<Place>| places.into_iter().filter_map(|place| image.path(place));
    Starts {
        ahead: EVERY.into_iter().map(PathBuf::from).chain(paths(ahead)).collect(),
        together: paths(together).collect(),
    }
}

fn size(image: &Image<'_>, place: Place) -> u64 {
    match image.entry(place).map(|entry| &entry.kind) {
        Some(Kind::File { size }) => *size,
        _ => 0,
    }
}

/// Programs with their interpreters and libraries.
struct Programs<'i, 't> {
    image: &'i Image<'t>,
    path: &'i str,
    order: Vec<Place>,
    seen: BTreeSet<Place>,
}

impl Programs<'_, '_> {
    fn start(&mut self, command: &[String]) {
        let image = self.image;
        let resolve = |name: &str| image.file(name.as_ref());
        let mut next: Vec<Place> = Vec::new();
        if let Some((program, arguments)) = command.split_first() {
            next.extend(find_program(program, self.path, &resolve));
            let named = arguments.iter().filter(|word| word.starts_with('/'));
            let small = |place: &Place| size(image, *place) <= MAX_ARGUMENT;
            next.extend(named.filter_map(|word| resolve(word)).filter(small));
        }
        while !next.is_empty() {
            next.retain(|place| self.seen.len() < MAX_FILES && self.seen.insert(*place));
            let mut named = Vec::new();
            for place in next {
                self.order.push(place);
                let content = image.content(place, MAX_SIZE).unwrap_or_default();
                named.extend(needs(&content, self.path, &resolve));
            }
            next = named;
        }
    }
}
