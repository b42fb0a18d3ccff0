//! Which streaming trees a connection has shown: 4 bytes each, little-endian, their numbers.
//!
//! What programs have mapped of a tree stays in the kernel when the daemon dies, and then nobody would take it back if the
//! image turned out to be a lie. So a successor reads here of which trees the kernel may have pages, and has it drop them
//! all. The file belongs to one connection; it should lie on a tmpfs.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

#[derive(Debug, Default)]
pub(super) struct Journal(Option<File>);

impl Journal {
    /// Begins a journal at `path` with these numbers; returns those that an earlier daemon of the connection left, if
    /// there was one.
    pub(super) fn begin(path: &Path, resumed: bool, shown: &[u32]) -> io::Result<(Self, Vec<u32>)> {
        let earlier = match std::fs::read(path) {
            Ok(bytes) if resumed => bytes.as_chunks::<4>().0.iter().map(|n| u32::from_le_bytes(*n)).collect(),
            Ok(_) => Vec::new(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut journal = Self(Some(File::create(path)?));
        // the earlier ones, too: this daemon may die before the kernel has dropped everything
        earlier.iter().chain(shown).try_for_each(|number| journal.add(*number))?;
        Ok((journal, earlier))
    }

    /// A tree is about to be shown.
    pub(super) fn add(&mut self, number: u32) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), |file| file.write_all(&number.to_le_bytes()))
    }
}
