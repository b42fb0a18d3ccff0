//! The programs of an add-on's entrypoints, with their interpreters and libraries: what each start reads, whatever it does.
//! They come first in the layers, as one piece.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use super::first::Image;
use super::tree::{Kind, Tree};
use crate::fs::image::program::{MAX_ARGUMENT, MAX_FILES, MAX_SIZE, find_program, needs};
use crate::policy::addon::Entrypoint;

/// The paths of what `entrypoints` start, in the order of need. What is in none of the trees is of a base image, or found
/// by the program itself.
pub(super) fn of(entrypoints: &[Entrypoint], trees: &[Tree], path: &str) -> Vec<PathBuf> {
    let image = Image::new(trees);
    let resolve = |name: &str| image.file(name.as_ref());
    let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
    for entrypoint in entrypoints {
        let mut next: Vec<(usize, usize)> = Vec::new();
        if let Some((program, arguments)) = entrypoint.command.split_first() {
            next.extend(find_program(program, path, &resolve));
            let named = arguments.iter().filter(|word| word.starts_with('/'));
            next.extend(named.filter_map(|word| resolve(word)).filter(|place| {
                matches!(image.entry(*place).map(|entry| &entry.kind), Some(Kind::File { size }) if *size <= MAX_ARGUMENT)
            }));
        }
        while !next.is_empty() {
            next.retain(|place| seen.len() < MAX_FILES && seen.insert(*place));
            let mut named = Vec::new();
            for place in next {
                let Some(tree) = trees.get(place.0) else { continue };
                let Some(entry) = image.entry(place) else { continue };
                order.push(tree.prefix.join(&entry.path));
                let mut bytes = Vec::new();
                // What cannot be read will be told of when it is packed.
                let read = File::open(tree.root.join(&entry.path))
                    .and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes));
                if read.is_ok() {
                    named.extend(needs(&bytes, path, &resolve));
                }
            }
            next = named;
        }
    }
    order
}
