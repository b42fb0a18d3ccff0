//! What the caller gave as one JSON text: his words as an array, or the object of `--args-json`, with the content of
//! files in the place of `--arg-file NAME=PATH` and `{"$file": "PATH"}`.
//!
//! The files are opened here, by the caller's own process: whatever he may not read, the job does not get, and links,
//! pipes and races are his own. The daemon never sees a path.

use crate::json::{self, push, push_escaped};
use crate::memory::Buffer;
use crate::sys::{self, AT_FDCWD, O_RDONLY};
use crate::text::complain;
use crate::words::{Options, Words, is_arg_file};

/// Largest text: what args.json takes (`MAX_ARGS_BYTES` of the daemon).
const MAX_JSON: usize = 1 << 20;

/// A JSON text; overwritten when dropped.
pub(crate) struct Given {
    buffer: Buffer,
    len: usize,
}

impl Given {
    /// Reads everything; on failure the reason is printed and the exit code returned.
    pub(crate) fn take(words: &Words<'_>, options: &Options<'_>) -> Result<Self, i32> {
        let mut given = Self { buffer: room(MAX_JSON)?, len: 0 };
        match options.json {
            Some(b"-") => given.splice(words, options, &Content::read(0, b"stdin")?)?,
            Some(json) => match json.strip_prefix(b"@") {
                Some(path) => given.splice(words, options, &Content::open(path)?)?,
                None => given.splice(words, options, json)?,
            },
            None => given.array(words, options)?,
        }
        Ok(given)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), i32> {
        self.len = push(bytes, &mut self.buffer, self.len).ok_or_else(too_large)?;
        Ok(())
    }

    /// The inside of a JSON string; `what` names it where it is no text.
    fn put_text(&mut self, bytes: &[u8], what: &[u8]) -> Result<(), i32> {
        let text = core::str::from_utf8(bytes).map_err(|_| complain(&[what, b" is not UTF-8"]))?;
        self.len = push_escaped(text, &mut self.buffer, self.len).ok_or_else(too_large)?;
        Ok(())
    }

    /// The words as they are, `--arg-file NAME=PATH` as `--NAME=CONTENT`.
    fn array(&mut self, words: &Words<'_>, options: &Options<'_>) -> Result<(), i32> {
        let mut separator: &[u8] = b"[";
        let (mut ended, mut index) = (false, 0);
        let mut all = words.iter();
        while let Some(word) = all.next() {
            index += 1;
            let pair = if ended || !is_arg_file(word) { None } else { Some(pair_of(word, &mut all)?) };
            match pair {
                Some((name, path)) => {
                    index += usize::from(word == b"--arg-file");
                    let content = Content::open(path)?;
                    self.put(separator)?;
                    self.put(b"\"--")?;
                    self.put_text(name, b"the name of an argument")?;
                    self.put(b"=")?;
                    self.put_text(&content, path)?;
                }
                // The options before the words are no words.
                None if index <= options.first => continue,
                None => {
                    ended |= word == b"--";
                    self.put(separator)?;
                    self.put(b"\"")?;
                    self.put_text(word, b"an argument")?;
                }
            }
            self.put(b"\"")?;
            separator = b",";
        }
        if separator == b"[" {
            self.put(separator)?;
        }
        self.put(b"]")
    }

    /// `json` with the files in their places. What is no object goes to the daemon as it is, which says what is wrong.
    fn splice(&mut self, words: &Words<'_>, options: &Options<'_>, json: &[u8]) -> Result<(), i32> {
        let has_files = words.leading(options).any(is_arg_file);
        let has_references = json.windows(FILE_KEY.len()).any(|part| part == FILE_KEY);
        let is_object = json::members(json, |_, _| Ok(())).is_some();
        if has_files && !is_object {
            return Err(complain(&[b"--arg-file wants an object at --args-json, or no --args-json"]));
        }
        if !is_object || !(has_files || has_references) {
            return self.put(json);
        }
        let mut separator: &[u8] = b"{";
        let mut member = |given: &mut Self, key: &[u8]| {
            let done = given.put(separator).and_then(|()| given.put(b"\"")).and_then(|()| given.put(key));
            separator = b",";
            done.and_then(|()| given.put(b"\":"))
        };
        let copied = json::members(json, |key, value| {
            member(self, key)?;
            let mut path = [0u8; sys::PATH_MAX];
            match json::file_reference(value, &mut path) {
                Some(path) => self.put_file(path),
                None => self.put(value),
            }
        });
        copied.unwrap_or(Ok(()))?;
        let mut all = words.leading(options);
        while let Some(word) = all.next() {
            if !is_arg_file(word) {
                continue;
            }
            let (name, path) = pair_of(word, &mut all)?;
            let mut twice = false;
            json::members(json, |key, _| {
                twice |= key == name;
                Ok(())
            });
            if twice {
                return Err(complain(&[b"argument ", name, b" is given twice: by --arg-file and in the JSON"]));
            }
            member(self, name)?;
            self.put_file(path)?;
        }
        if separator == b"{" {
            self.put(separator)?;
        }
        self.put(b"}")
    }

    fn put_file(&mut self, path: &[u8]) -> Result<(), i32> {
        let content = Content::open(path)?;
        self.put(b"\"")?;
        self.put_text(&content, path)?;
        self.put(b"\"")
    }
}

/// The key of a reference, as it stands in JSON.
const FILE_KEY: &[u8] = b"\"$file\"";

fn too_large() -> i32 {
    complain(&[b"the arguments are above 1 MiB"])
}

fn room(len: usize) -> Result<Buffer, i32> {
    Buffer::private(len).map_err(|errno| complain(&[b"no memory for the arguments: ", errno.words()]))
}

/// Name and path of `--arg-file NAME=PATH`; the pair may be the next word.
fn pair_of<'w>(word: &'w [u8], rest: &mut impl Iterator<Item = &'w [u8]>) -> Result<(&'w [u8], &'w [u8]), i32> {
    let pair = word.strip_prefix(b"--arg-file=").or_else(|| rest.next()).unwrap_or_default();
    let split = pair.iter().position(|byte| *byte == b'=').unwrap_or(0);
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    match (pair.get(..split), pair.get(split + 1..)) {
        (Some(name), Some(path)) if !name.is_empty() && name.iter().all(plain) && !path.is_empty() => {
            Ok((name, path))
        }
        _ => Err(complain(&[b"--arg-file needs NAME=PATH"])),
    }
}

/// The content of a file, at most as much as arguments may be.
struct Content {
    buffer: Buffer,
    len: usize,
}

impl Content {
    fn open(path: &[u8]) -> Result<Self, i32> {
        let file = sys::open(AT_FDCWD, path, O_RDONLY)
            .map_err(|errno| complain(&[b"cannot open ", path, b": ", errno.words()]))?;
        let content = Self::read(file, path);
        sys::close(file);
        content
    }

    fn read(file: i32, name: &[u8]) -> Result<Self, i32> {
        let mut buffer = room(MAX_JSON + 1)?;
        let mut len = 0;
        loop {
            let free = buffer.get_mut(len..).unwrap_or_default();
            match sys::read(file, free) {
                Ok(0) if len > MAX_JSON => return Err(complain(&[name, b" is larger than 1 MiB"])),
                Ok(0) => return Ok(Self { buffer, len }),
                Ok(more) => len += more,
                Err(errno) => return Err(complain(&[b"cannot read ", name, b": ", errno.words()])),
            }
        }
    }
}

impl core::ops::Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}
