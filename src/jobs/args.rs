//! The text of `args.json` before start: written in pieces by anybody, shown again, judged only at start.
//!
//! A job that takes no secrets has the text on disk, byte for byte as written. A job that takes secrets has it in
//! memory only, wiped when it is dropped, and shows it with the secrets replaced, or shows nothing as long as it is
//! no JSON object: half a text cannot be masked with certainty. After a restart of the daemon such a text is gone
//! and the run says that it must be written again.

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::error::JobError;
use crate::policy::arguments::{ArgumentProblem, Given, MASK};

/// Most bytes of `args.json`: secrets such as keys and kubeconfigs fit; it is held in memory.
pub const MAX_ARGS_BYTES: u64 = 1 << 20;
/// Most bytes of the arguments without secrets: `FLWD_ARGS_JSON` is one environment string, of which the kernel
/// takes at most 128 KiB with its name and NUL (MAX_ARG_STRLEN, execve(2)).
pub const MAX_PLAIN_BYTES: usize = (128 << 10) - 64;

/// The text, wiped when dropped or outgrown.
#[derive(Default)]
pub(super) struct ArgsText(Zeroizing<Vec<u8>>);

impl ArgsText {
    pub(super) fn new(text: Vec<u8>) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Writes a piece; a gap before it is filled with blanks, which JSON ignores.
    pub(super) fn write(&mut self, offset: u64, piece: &[u8]) -> Result<(), JobError> {
        let end = offset.saturating_add(piece.len() as u64);
        if end > MAX_ARGS_BYTES {
            return Err(too_large());
        }
        let (offset, end) = (offset as usize, end as usize);
        if end > self.0.len() {
            self.resize(end);
        }
        if let Some(place) = self.0.get_mut(offset..end) {
            place.copy_from_slice(piece);
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, len: u64) -> Result<(), JobError> {
        if len > MAX_ARGS_BYTES {
            return Err(too_large());
        }
        self.resize(len as usize);
        Ok(())
    }

    /// Never lets `Vec` move the text by itself: it would leave a copy behind.
    fn resize(&mut self, len: usize) {
        if len > self.0.capacity() {
            let mut grown = Zeroizing::new(Vec::with_capacity(len.next_power_of_two().max(4096)));
            grown.extend_from_slice(&self.0);
            self.0 = grown;
        }
        if let Some(cut) = self.0.get_mut(len..) {
            cut.fill(0);
        }
        self.0.resize(len, b' ');
    }

    /// What a reader sees.
    pub(super) fn shown(&self, secret_names: &[String]) -> Vec<u8> {
        if secret_names.is_empty() {
            return self.0.to_vec();
        }
        match serde_json::from_slice::<Value>(&self.0) {
            Ok(Value::Object(mut map)) => {
                for name in secret_names {
                    if let Some(value) = map.get_mut(name) {
                        *value = Value::from(MASK);
                    }
                }
                super::record::pretty(&Value::Object(map))
            }
            _ => Vec::new(),
        }
    }

    /// The caller's arguments; an empty text is no arguments.
    pub(super) fn given(&self) -> Result<Given, JobError> {
        if self.0.iter().all(u8::is_ascii_whitespace) {
            return Ok(Given::Json(Map::new()));
        }
        let value: Value = serde_json::from_slice(&self.0).map_err(|e| {
            whole(format!("args.json is not JSON (line {}, column {})", e.line(), e.column()))
        })?;
        match value {
            Value::Object(map) => Ok(Given::Json(map)),
            Value::Array(items) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(word) => Ok(word),
                    _ => Err(whole("args.json is an array, and not all of it are strings")),
                })
                .collect::<Result<Vec<_>, _>>()
                .map(Given::Words),
            _ => Err(whole("args.json is neither a JSON object nor an array of command-line words")),
        }
    }
}

fn whole(message: impl Into<String>) -> JobError {
    JobError::Arguments(vec![ArgumentProblem { arg: String::new(), message: message.into() }])
}

fn too_large() -> JobError {
    JobError::Invalid(format!("args.json takes at most {MAX_ARGS_BYTES} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pieces: &[(u64, &str)]) -> ArgsText {
        let mut text = ArgsText::default();
        for (offset, piece) in pieces {
            text.write(*offset, piece.as_bytes()).unwrap();
        }
        text
    }

    #[test]
    fn takes_pieces_in_any_order() {
        let text = text(&[(5, "2}"), (0, "{\"a\":")]);
        assert_eq!(text.bytes(), b"{\"a\":2}");
        assert!(matches!(text.given().unwrap(), Given::Json(map) if map["a"] == 2));
    }

    #[test]
    fn has_a_limit() {
        let mut text = ArgsText::default();
        assert!(text.write(MAX_ARGS_BYTES, b"x").is_err());
        assert!(text.write(u64::MAX, b"x").is_err());
        assert!(text.truncate(MAX_ARGS_BYTES + 1).is_err());
        text.write(MAX_ARGS_BYTES - 1, b"x").unwrap();
        assert_eq!(text.bytes().len() as u64, MAX_ARGS_BYTES);
    }

    #[test]
    fn shows_secrets_never() {
        let secret = ["token".to_owned()];
        let whole = text(&[(0, r#"{"a":1,"token":"hunter2"}"#)]);
        let shown = String::from_utf8(whole.shown(&secret)).unwrap();
        assert!(shown.contains(MASK) && !shown.contains("hunter2"), "{shown}");
        for half in [r#"{"token":"hunter2""#, r#"["--token","hunter2"]"#, "hunter2"] {
            assert_eq!(text(&[(0, half)]).shown(&secret), b"", "{half}");
        }
        assert_eq!(text(&[(0, "{\"a\"")]).shown(&[]), b"{\"a\"");
    }

    #[test]
    fn judges_the_form() {
        assert!(matches!(text(&[(0, " \n")]).given().unwrap(), Given::Json(map) if map.is_empty()));
        assert!(matches!(text(&[(0, "[\"--a\",\"b\"]")]).given().unwrap(), Given::Words(w) if w.len() == 2));
        for (bad, words) in [("[1]", "not all"), ("3", "neither"), ("{", "line 1"), ("\"x\"", "neither")] {
            let error = text(&[(0, bad)]).given().unwrap_err().to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn truncation_forgets() {
        let mut text = text(&[(0, "secret")]);
        text.truncate(0).unwrap();
        text.truncate(6).unwrap();
        assert_eq!(text.bytes(), b"      ");
    }
}
