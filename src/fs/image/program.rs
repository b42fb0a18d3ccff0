//! What a program needs before its first instruction: its file, the interpreter, the libraries that it names.
//!
//! The dynamic loader opens them one after the other, and each would be a round trip. Here they are read together, while
//! the container is being made. It is a guess from `DT_NEEDED` and `#!` lines: what is not found is found by the loader,
//! later; what is read too much is a library.

use std::collections::{BTreeSet, VecDeque};

use elf::ElfBytes;
use elf::abi::{DT_NEEDED, DT_STRTAB, PT_INTERP, PT_LOAD};
use elf::endian::AnyEndian;
use futures_util::future::join_all;

use super::file::NodeBody;
use super::images::Image;
use super::tree;
use crate::fetch::layer::Read;
use crate::fetch::verified::VerifiedBytes;

/// Most files that are read for one start: a browser names about a hundred libraries.
pub const MAX_FILES: usize = 128;
/// Larger files are left to the loader.
pub const MAX_SIZE: u64 = 16 << 20;
/// Largest file among the arguments that is read: a script, not the data that it works on.
pub const MAX_ARGUMENT: u64 = 256 << 10;
/// Symlinks on the way to a file, as the kernel follows.
const MAX_LINKS: usize = 40;
/// Where loaders look for libraries, of glibc's and of musl's distributions; the interpreter's own folder comes first.
const LIBRARY_DIRS: [&str; 9] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];
/// Longest `#!` line, as the kernel reads it (BINPRM_BUF_SIZE).
const MAX_LINE: usize = 256;

/// Reads what starting `argv` needs of `image`, so that it is here when the container asks for it. `path` is the
/// container's `PATH`. Does nothing if the program is here already.
pub async fn read_ahead(image: &Image, argv: &[String], path: &str) {
    let resolve = |path: &str| resolve(image, path);
    let Some(program) = argv.first().and_then(|name| find_program(name, path, &resolve)) else { return };
    if is_here(image, program) {
        return;
    }
    let mut seen = BTreeSet::from([program]);
    let arguments = argv.iter().skip(1).filter(|word| word.starts_with('/'));
    let small = |node: &u32| size(image, *node).is_some_and(|size| size <= MAX_ARGUMENT);
    seen.extend(arguments.filter_map(|word| resolve(word)).filter(small));
    let mut next: Vec<u32> = seen.iter().copied().collect();
    while !next.is_empty() {
        let read = join_all(next.iter().map(|node| content(image, *node))).await;
        next = read
            .iter()
            .flatten()
            .flat_map(|bytes| needs(bytes, path, &resolve))
            .filter(|node| seen.len() < MAX_FILES && seen.insert(*node))
            .collect();
    }
}

/// The files that a file names: libraries and loader of an ELF file, the interpreter of a script. `path` is the
/// program's `PATH`; `resolve` finds a file by its name in the image.
pub fn needs<F>(bytes: &[u8], path: &str, resolve: &impl Fn(&str) -> Option<F>) -> Vec<F> {
    if let Some(line) = bytes.strip_prefix(b"#!") {
        let line =
            line.get(..MAX_LINE).unwrap_or(line).split(|byte| *byte == b'\n').next().unwrap_or_default();
        let words = String::from_utf8_lossy(line).into_owned();
        let words = words.split_whitespace().take(2);
        // `env` names the program that it looks for.
        return words.filter_map(|word| find_program(word, path, resolve)).collect();
    }
    let Some((interpreter, libraries)) = dynamic(bytes) else { return Vec::new() };
    let own =
        interpreter.as_deref().and_then(|path| path.rsplit_once('/')).map(|(folder, _)| folder.to_owned());
    let dirs: Vec<&str> = own.as_deref().into_iter().chain(LIBRARY_DIRS).collect();
    let find = |name: &String| dirs.iter().find_map(|dir| resolve(&format!("{dir}/{name}")));
    let loader = interpreter.as_deref().and_then(resolve);
    loader.into_iter().chain(libraries.iter().filter_map(find)).collect()
}

/// The interpreter and the needed libraries of an ELF file, by name.
fn dynamic(bytes: &[u8]) -> Option<(Option<String>, Vec<String>)> {
    let elf = ElfBytes::<AnyEndian>::minimal_parse(bytes).ok()?;
    let segments = elf.segments()?;
    let text = |start: u64| {
        let rest = bytes.get(usize::try_from(start).ok()?..)?;
        let end = rest.iter().take(4096).position(|byte| *byte == 0)?;
        String::from_utf8(rest.get(..end)?.to_vec()).ok()
    };
    let interpreter =
        segments.iter().find(|part| part.p_type == PT_INTERP).and_then(|part| text(part.p_offset));
    // Addresses are of the loaded program; its segments say where that is in the file.
    let in_file = |address: u64| {
        segments.iter().filter(|part| part.p_type == PT_LOAD).find_map(|part| {
            let within = address.checked_sub(part.p_vaddr).filter(|within| *within < part.p_filesz)?;
            part.p_offset.checked_add(within)
        })
    };
    let table = elf.dynamic().ok()??;
    let names =
        table.iter().find(|entry| entry.d_tag == DT_STRTAB).and_then(|entry| in_file(entry.d_ptr()))?;
    let needed = table.iter().filter(|entry| entry.d_tag == DT_NEEDED).take(MAX_FILES);
    let libraries = needed.filter_map(|entry| text(names.checked_add(entry.d_val())?)).collect();
    Some((interpreter, libraries))
}

/// Where a program's name leads: a path, or what is found in `PATH`.
pub fn find_program<F>(name: &str, path: &str, resolve: &impl Fn(&str) -> Option<F>) -> Option<F> {
    if name.contains('/') {
        return resolve(name);
    }
    path.split(':').find_map(|dir| resolve(&format!("{dir}/{name}")))
}

/// The regular file that a path inside the image leads to.
fn resolve(image: &Image, path: &str) -> Option<u32> {
    let mut todo: VecDeque<Vec<u8>> = path.split('/').map(|part| part.as_bytes().to_vec()).collect();
    let (mut way, mut links) = (vec![tree::ROOT], 0);
    while let Some(name) = todo.pop_front() {
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                way.truncate(way.len().saturating_sub(1).max(1));
                continue;
            }
            _ => {}
        }
        let child = image.tree.child(&image.tree.node(*way.last()?)?, &name)?;
        let node = image.tree.node(child)?;
        let Some(target) = image.tree.target(&node) else {
            way.push(child);
            continue;
        };
        links += 1;
        if links > MAX_LINKS {
            return None;
        }
        if target.first() == Some(&b'/') {
            way.truncate(1);
        }
        target.rsplit(|byte| *byte == b'/').for_each(|part| todo.push_front(part.to_vec()));
    }
    way.last().copied().filter(|node| size(image, *node).is_some())
}

/// The size of a regular file.
fn size(image: &Image, node: u32) -> Option<u64> {
    match image.tree.node(node)?.body {
        NodeBody::File { size, .. } => Some(size),
        _ => None,
    }
}

fn is_here(image: &Image, node: u32) -> bool {
    match image.tree.node(node).map(|node| node.body) {
        Some(NodeBody::File { layer, file, .. }) => {
            image.layers.get(layer as usize).is_some_and(|layer| layer.has_file(file))
        }
        _ => false,
    }
}

/// A file whole. Errors are the reader's, when there is one.
async fn content(image: &Image, node: u32) -> Option<VerifiedBytes> {
    let NodeBody::File { layer, file, size } = image.tree.node(node)?.body else { return None };
    let length = u32::try_from(size).ok().filter(|_| size <= MAX_SIZE)?;
    match image.layers.get(layer as usize)?.read(file, 0, length) {
        Read::Ready(bytes) => Some(bytes),
        Read::Pending(bytes) => bytes.await.ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_names_its_libraries() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let (interpreter, libraries) = dynamic(&bytes).unwrap();
        assert!(interpreter.unwrap().contains("ld-"));
        assert!(libraries.iter().any(|name| name.starts_with("libc.so")), "{libraries:?}");
        for len in [0, 4, 64, 1000, bytes.len() / 2] {
            // Cut anywhere it names something or nothing, and returns.
            let _ = dynamic(&bytes[..len]);
        }
        assert_eq!(dynamic(b"#!/bin/sh\n"), None);
    }
}
