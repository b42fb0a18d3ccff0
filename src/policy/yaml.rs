//! YAML with positions: a tree in which every node knows its line and column.
//!
//! In: bytes of somebody else's YAML. Out: a [`Node`], or the place at which the text is not YAML. Dialect: YAML
//! 1.2 as serde-saphyr reads it, one document, `true` and `false` the only booleans, a key twice in one mapping an
//! error. Limits are small: the files are written by people.

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

/// Largest document, in bytes. A manifest of a hundred entrypoints with long schemas has about 300 KiB.
pub const MAX_BYTES: usize = 1 << 20;

/// Deepest nesting. A JSON Schema inside a manifest reaches 20; the tree is walked recursively.
const MAX_DEPTH: usize = 48;

/// Most nodes after aliases are expanded.
const MAX_NODES: usize = 50_000;

/// Most expanded aliases: they are a convenience, and the fuel of exponential documents.
const MAX_ALIASES: usize = 256;

/// Something wrong at a place of a document.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Line, from 1; 0 if it concerns the document as a whole.
    pub line: u64,
    /// Column in characters, from 1; 0 if it concerns the document as a whole.
    pub column: u64,
    /// JSON pointer to the node (RFC 6901); empty for the document.
    pub pointer: String,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        if !self.pointer.is_empty() {
            write!(f, "{}: ", self.pointer)?;
        }
        f.write_str(&self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, " ({})", self.hint) }
    }
}

/// A node and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// What it is.
    pub kind: Kind,
    /// How a number was written, where that is known.
    literal: Option<String>,
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Nothing, `~`, `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A finite number.
    Number(Number),
    /// Text, quoted or not.
    String(String),
    /// A sequence.
    Seq(Vec<Node>),
    /// A mapping, keys in their written order, none twice.
    Map(Vec<Entry>),
}

/// One pair of a mapping.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Line of the key.
    pub line: u64,
    /// Column of the key.
    pub column: u64,
    /// The value.
    pub value: Node,
}

/// Parses one document.
pub fn parse(bytes: &[u8]) -> Result<Node, Problem> {
    if bytes.len() > MAX_BYTES {
        return Err(whole(format!("the document has {} bytes, at most {MAX_BYTES} are read", bytes.len())));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count() as u64 + 1;
        Problem { line, column: 1, ..whole("the document is not UTF-8".to_owned()) }
    })?;
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        emit_comments: false,
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(MAX_BYTES),
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_recorded_anchor_events: MAX_NODES,
            max_recorded_anchor_bytes: MAX_BYTES,
            max_documents: 1,
            max_total_scalar_bytes: 4 * MAX_BYTES,
            max_merge_keys: MAX_ALIASES
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
            max_replay_stack_depth: 16
        },
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(raw) => Ok(place(raw, text)),
        Err(error) => {
            let at = error.location().unwrap_or(Location::UNKNOWN);
            let mut message = error.render();
            // The renderer names the place again; ours stands in front.
            if let Some(cut) = message.rfind(" at line ") {
                message.truncate(cut);
            }
            let message = message.lines().next().unwrap_or("not YAML").to_owned();
            Err(Problem { line: at.line(), column: at.column(), ..whole(message) })
        }
    }
}

fn whole(message: String) -> Problem {
    Problem { line: 0, column: 0, pointer: String::new(), message, hint: String::new() }
}

impl Node {
    /// What it is, in a word for messages.
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Null => "empty",
            Kind::Bool(_) => "a boolean",
            Kind::Number(_) => "a number",
            Kind::String(_) => "a string",
            Kind::Seq(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }

    /// The value of a key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The node a JSON pointer names, or the deepest one on the way to it that exists.
    pub fn nearest(&self, pointer: &str) -> &Node {
        let mut node = self;
        for token in pointer.split('/').skip(1) {
            let token = token.replace("~1", "/").replace("~0", "~");
            let next = match &node.kind {
                Kind::Seq(items) => token.parse::<usize>().ok().and_then(|index| items.get(index)),
                _ => node.get(&token),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    /// How a number was written, if its spelling means different things to different readers of YAML:
    /// `0755` (octal or decimal), `1_000` (number or text).
    pub fn ambiguous_number(&self) -> Option<&str> {
        let literal = self.literal.as_deref()?;
        let digits = literal.trim_start_matches(['+', '-']).as_bytes();
        let octal = matches!(digits, [b'0', next, ..] if next.is_ascii_digit());
        (octal || literal.contains('_')).then_some(literal)
    }

    /// The text of a scalar as it was written, where that is known and is not `null`.
    pub fn scalar_text(&self) -> Option<String> {
        match &self.kind {
            Kind::String(text) => Some(text.clone()),
            Kind::Number(number) => Some(self.literal.clone().unwrap_or_else(|| number.to_string())),
            Kind::Bool(value) => Some(value.to_string()),
            Kind::Null | Kind::Seq(_) | Kind::Map(_) => None,
        }
    }

    /// The same as JSON.
    pub fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(number) => Value::Number(number.clone()),
            Kind::String(text) => Value::String(text.clone()),
            Kind::Seq(items) => items.iter().map(Self::to_json).collect(),
            Kind::Map(entries) => {
                let pairs = entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// Calls `see` for this node and everything below it, with JSON pointers that start with `pointer`.
    pub fn walk<'n>(&'n self, pointer: &str, see: &mut dyn FnMut(&str, &'n Node)) {
        see(pointer, self);
        match &self.kind {
            Kind::Seq(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.walk(&format!("{pointer}/{index}"), see);
                }
            }
            Kind::Map(entries) => {
                for entry in entries {
                    entry.value.walk(&join(pointer, &entry.key), see);
                }
            }
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::String(_) => {}
        }
    }
}

/// Appends a key to a JSON pointer, escaped as RFC 6901 says.
pub fn join(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// What the deserializer yields, before positions are taken over.
enum Raw {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Seq(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

/// Depth is bounded by [`MAX_DEPTH`], so this recursion is too.
fn place(raw: Spanned<Raw>, text: &str) -> Node {
    let literal = match raw.value {
        Raw::Number(_) => source_text(raw.defined, text),
        _ => None,
    };
    let kind = match raw.value {
        Raw::Null => Kind::Null,
        Raw::Bool(value) => Kind::Bool(value),
        Raw::Number(number) => Kind::Number(number),
        Raw::String(text) => Kind::String(text),
        Raw::Seq(items) => Kind::Seq(items.into_iter().map(|item| place(item, text)).collect()),
        Raw::Map(pairs) => Kind::Map(
            pairs
                .into_iter()
                .map(|(key, value)| Entry {
                    line: key.referenced.line(),
                    column: key.referenced.column(),
                    key: key.value,
                    value: place(value, text),
                })
                .collect(),
        ),
    };
    Node { line: raw.referenced.line(), column: raw.referenced.column(), kind, literal }
}

fn source_text(at: Location, text: &str) -> Option<String> {
    let start = usize::try_from(at.span().byte_offset()?).ok()?;
    let len = usize::try_from(at.span().byte_len()?).ok()?;
    Some(text.get(start..start.checked_add(len)?)?.trim().to_owned())
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Raw, E> {
        Number::from_f64(value).map(Raw::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Raw::Map(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_knows_its_place() {
        let node = parse(b"name: x\nlist:\n  - a: 1\n  - [true, no, 0755]\n").unwrap();
        let place = |pointer| (node.nearest(pointer).line, node.nearest(pointer).column);
        assert_eq!(place("/name"), (1, 7));
        assert_eq!(place("/list/0/a"), (3, 8));
        assert_eq!(place("/list/1/2"), (4, 16));
        assert_eq!(place("/list/1/9"), place("/list/1"));
        let Kind::Map(entries) = &node.kind else { panic!() };
        assert_eq!((entries[1].line, entries[1].column), (2, 1));
        assert!(matches!(&node.nearest("/list/1/1").kind, Kind::String(text) if text == "no"));
        assert_eq!(node.nearest("/list/1/2").ambiguous_number(), Some("0755"));
        assert_eq!(node.nearest("/list/0/a").ambiguous_number(), None);
    }

    #[test]
    fn refuses_with_a_place() {
        let twice = parse(b"a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!((twice.line, twice.column), (3, 1), "{twice}");
        assert!(twice.message.contains("duplicate"), "{twice}");
        assert_eq!(parse(b"a: 1\nb: [2\nc: }\n").unwrap_err().line, 3);
        assert_eq!(parse(b"a: 1\nb: \xff\n").unwrap_err().line, 2);
        assert!(parse(b"a: 1\n---\nb: 2\n").is_err());
        assert!(parse(b"a: .inf\n").is_err());
        assert!(parse(&vec![b' '; MAX_BYTES + 1]).unwrap_err().message.contains("bytes"));
        assert!(parse("[".repeat(10_000).as_bytes()).is_err());
    }

    #[test]
    fn bombs_are_small() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..10 {
            let before = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(",")));
        }
        assert!(parse(bomb.as_bytes()).is_err());
    }

    #[test]
    fn an_empty_document_is_null() {
        assert!(matches!(parse(b"").unwrap().kind, Kind::Null));
        assert!(matches!(parse(b"# nothing\n").unwrap().kind, Kind::Null));
    }
}
