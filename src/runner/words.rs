//! The caller's words: hidden from process lists at once, shown again where they are no secrets, encoded as JSON.
//!
//! Invariant: the memory of argv holds stars until [`Words::reveal`] has read the argspec and knows which words
//! hold secrets; those stay stars. Where the argspec cannot be read, all of them stay.

use crate::entry::Start;
use crate::json;
use crate::memory::Buffer;
use crate::place::Place;
use crate::sys::{self, Errno, O_RDONLY};
use crate::text::complain;

/// A hidden word shows this many stars, whatever its length.
const STARS: usize = 8;

/// Largest argspec.json that is read; manifests are at most 1 MiB.
const MAX_ARGSPEC: usize = 2 << 20;

/// More secrets than any job has; beyond it everything stays hidden.
const MAX_SECRETS: usize = 64;

/// A copy of the words; overwritten when dropped.
pub(crate) struct Words<'s> {
    start: &'s Start,
    copy: Buffer,
}

/// The options before the job's own words.
pub(crate) struct Options<'w> {
    /// `-i`: pass stdin on.
    pub(crate) stdin: bool,
    /// `-p PROFILE`: the security profile to ask for.
    pub(crate) profile: Option<&'w [u8]>,
    /// `-l LIMITS`: the limits to ask for.
    pub(crate) limits: Option<&'w [u8]>,
    /// `--help`.
    pub(crate) help: bool,
    /// The value of `--args-json`.
    pub(crate) json: Option<&'w [u8]>,
    /// Index of the first word that is the job's.
    pub(crate) first: usize,
}

impl<'s> Words<'s> {
    /// Copies the words and overwrites the originals.
    pub(crate) fn take(start: &'s Start) -> Result<Self, Errno> {
        let count = start.word_count();
        let total = (0..count).map(|index| start.word_len(index) + 1).sum();
        let mut copy = Buffer::private(total)?;
        let mut at = 0;
        for index in 0..count {
            // SAFETY: the length before the word is overwritten; the only slice of it at this time.
            let word = unsafe { start.word(index, start.word_len(index)) };
            // The mapping is zeroed: the byte after each word is the NUL that ends it.
            at = json::push(word, &mut copy, at).unwrap_or(at) + 1;
            hide(word);
        }
        Ok(Self { start, copy })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.copy.split(|byte| *byte == 0).take(self.start.word_count())
    }

    /// The options before the job's own words.
    pub(crate) fn leading(&self, options: &Options<'_>) -> impl Iterator<Item = &[u8]> {
        self.iter().take(options.first)
    }

    /// Reads the options; they end at the first word that is none.
    pub(crate) fn options(&self) -> Result<Options<'_>, &'static str> {
        let mut options =
            Options { stdin: false, profile: None, limits: None, help: false, json: None, first: 0 };
        let mut words = self.iter();
        while let Some(word) = words.next() {
            match word {
                b"-i" => options.stdin = true,
                b"-h" | b"--help" => options.help = true,
                b"-p" => {
                    let profile = words.next().filter(|word| is_word(word));
                    options.profile = Some(profile.ok_or("-p needs secure, permissive or disabled")?);
                    options.first += 1;
                }
                b"-l" => {
                    let limits = words.next().filter(|word| is_list(word));
                    options.limits = Some(limits.ok_or("-l needs limits, as in cpu=0.5,memory=512Mi,timeout=10m")?);
                    options.first += 1;
                }
                b"--args-json" => {
                    options.json = Some(words.next().ok_or("--args-json needs JSON, @FILE or -")?);
                    options.first += 1;
                }
                b"--arg-file" => {
                    words.next().ok_or("--arg-file needs NAME=PATH")?;
                    options.first += 1;
                }
                _ if is_arg_file(word) => {}
                _ => match word.strip_prefix(b"--args-json=") {
                    Some(json) => options.json = Some(json),
                    None => break,
                },
            }
            options.first += 1;
        }
        if options.json.is_some() && options.first < self.start.word_count() {
            return Err("give the arguments as words or by --args-json, not both");
        }
        if options.stdin && options.json == Some(b"-") {
            return Err("-i and --args-json - both want stdin: use --args-json @FILE");
        }
        Ok(options)
    }

    /// Shows the words again that hold no secret, and warns of those that do.
    pub(crate) fn reveal(&self, place: &Place, options: &Options<'_>) {
        if self.start.word_count() == 0 {
            return;
        }
        let Some((argspec, len)) = read_argspec(place) else { return };
        let mut names: [&[u8]; MAX_SECRETS] = [&[]; MAX_SECRETS];
        let mut count = 0;
        let read = json::secrets(argspec.get(..len).unwrap_or_default(), |name| {
            if let Some(slot) = names.get_mut(count) {
                *slot = name;
            }
            count += 1;
        });
        let (Some(()), Some(names)) = (read, names.get(..count)) else { return };
        let mut warn = false;
        // Between a secret's value and the next option: words of a value that lost its quotes.
        let mut after_secret = false;
        // The name and the path of a file are no secrets.
        let mut after_arg_file = false;
        for (index, word) in self.iter().enumerate() {
            let is_pair = core::mem::replace(&mut after_arg_file, word == b"--arg-file");
            let hidden_from = if is_pair {
                None
            } else if index < options.first {
                let inline = options.json == Some(word) || word.starts_with(b"--args-json={");
                (inline && json_has(word, names)).then_some(0)
            } else {
                let option = word.strip_prefix(b"--");
                let text = option.unwrap_or(word);
                let name_len = text.iter().position(|byte| *byte == b'=');
                let name = text.get(..name_len.unwrap_or(text.len())).unwrap_or_default();
                let is_secret = names.iter().any(|secret| same_name(secret, name));
                let hidden_from = match (is_secret, name_len) {
                    (true, Some(name_len)) => Some(word.len() - text.len() + name_len + 1),
                    _ if option.is_none() && after_secret => Some(0),
                    _ => None,
                };
                after_secret = (after_secret && option.is_none())
                    || (is_secret && (option.is_some() || name_len.is_some()));
                hidden_from
            };
            warn |= hidden_from.is_some();
            // SAFETY: the copy has the length the word had; the only slice of it at this time.
            let shown = unsafe { self.start.word(index, word.len()) };
            let keep = hidden_from.unwrap_or(word.len()).min(shown.len());
            if hidden_from.is_none() || keep > 0 {
                let (open, rest) = shown.split_at_mut(keep);
                open.iter_mut().zip(word).for_each(|(to, from)| *to = *from);
                hide(rest);
            }
        }
        if warn {
            complain(&[
                b"warning: a secret on a command line can be seen by others until it is hidden; ",
                b"better: --arg-file NAME=PATH, --args-json @FILE, or --args-json - and the JSON on stdin",
            ]);
        }
    }
}

/// `--arg-file NAME=PATH`, in one word or two.
pub(crate) fn is_arg_file(word: &[u8]) -> bool {
    word == b"--arg-file" || word.starts_with(b"--arg-file=")
}

/// Letters only: it becomes a word of a command line.
fn is_word(word: &[u8]) -> bool {
    !word.is_empty() && word.len() <= 40 && word.iter().all(u8::is_ascii_alphabetic)
}

/// No blank and nothing that quotes: likewise.
fn is_list(word: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"=,.+-".contains(byte);
    !word.is_empty() && word.len() <= 120 && word.iter().all(plain)
}

/// Overwrites a word; its length does not show.
fn hide(word: &mut [u8]) {
    word.fill(0);
    if let Some(stars) = word.get_mut(..STARS.min(word.len())) {
        stars.fill(b'*');
    }
}

/// Dashes and underscores are equal in names of arguments.
fn same_name(secret: &[u8], written: &[u8]) -> bool {
    let fold = |byte: &u8| if *byte == b'-' { b'_' } else { *byte };
    secret.len() == written.len() && secret.iter().map(fold).eq(written.iter().map(fold))
}

/// Whether JSON given inline has a secret among its keys; text that does not parse counts as one that has.
fn json_has(word: &[u8], secrets: &[&[u8]]) -> bool {
    let text = word.strip_prefix(b"--args-json=").unwrap_or(word);
    if !text.starts_with(b"{") || secrets.is_empty() {
        return false;
    }
    let mut found = false;
    let mut path = [0u8; sys::PATH_MAX];
    let read = json::members(text, |key, value| {
        found |= secrets.contains(&key) && json::file_reference(value, &mut path).is_none();
        Ok(())
    });
    found || read.is_none()
}

fn read_argspec(place: &Place) -> Option<(Buffer, usize)> {
    let file = place.open(b"argspec.json", O_RDONLY).ok()?;
    let mut buffer = Buffer::new(MAX_ARGSPEC).ok()?;
    let mut len = 0;
    loop {
        match sys::read(file, buffer.get_mut(len..)?).ok()? {
            0 => return Some((buffer, len)),
            more => len += more,
        }
    }
}
