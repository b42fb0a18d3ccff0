//! The words of a command line to JSON, by the schema: `--name value`, `--name=value`, `name=value`; `--flag` and
//! `--no-flag` for booleans; lists comma-split or repeated; objects as repeated `k=v` or as JSON. Dashes and
//! underscores are equal in names.

use serde_json::{Map, Value};

use super::coerce::{self, quoted, same_name};
use super::schema::{properties, types};
use super::{ArgSpec, ArgumentProblem};
use crate::policy::nearest::nearest;

/// The arguments that could be read, and what is wrong with the others.
pub(super) fn read(spec: &ArgSpec, words: &[String]) -> (Map<String, Value>, Vec<ArgumentProblem>) {
    let mut reader = Reader { spec, values: Map::new(), problems: Vec::new() };
    let mut rest = words.iter().enumerate().peekable();
    let mut options_ended = false;
    while let Some((index, word)) = rest.next() {
        if word == "--" && !options_ended {
            options_ended = true;
            continue;
        }
        match word.strip_prefix("--").filter(|_| !options_ended) {
            Some(option) => match option.split_once('=') {
                Some((name, value)) => reader.option(name, value),
                None if reader.flag(option) => {
                    // `--flag true` is read too: no word can stand alone here, so it means nothing else.
                    if let Some((_, value)) =
                        rest.next_if(|(_, word)| matches!(word.as_str(), "true" | "false"))
                    {
                        reader.put(option, value);
                    } else {
                        reader.put(option, "true");
                    }
                }
                None if reader.negated(option).is_some() => {
                    let name = reader.negated(option).unwrap_or_default();
                    reader.put(&name, "false");
                }
                None => match rest.next_if(|(_, word)| !word.starts_with("--")) {
                    Some((_, value)) => reader.option(option, value),
                    None => reader.without_value(option),
                },
            },
            None => reader.pair(index, word),
        }
    }
    (reader.values, reader.problems)
}

struct Reader<'a> {
    spec: &'a ArgSpec,
    values: Map<String, Value>,
    problems: Vec<ArgumentProblem>,
}

impl<'a> Reader<'a> {
    /// The argument's name as the schema has it.
    fn known(&self, written: &str) -> Option<(&'a str, &'a Value)> {
        let spec: &'a ArgSpec = self.spec;
        let schema = &spec.schema;
        let exact = properties(schema).find(|(name, _)| name.as_str() == written);
        exact
            .or_else(|| properties(schema).find(|(name, _)| same_name(name, written)))
            .map(|(name, schema)| (name.as_str(), schema))
    }

    fn is_boolean(&self, written: &str) -> bool {
        self.known(written).is_some_and(|(_, schema)| types(&self.spec.schema, schema).contains(&"boolean"))
    }

    fn flag(&self, option: &str) -> bool {
        self.is_boolean(option)
    }

    fn negated(&self, option: &str) -> Option<String> {
        let name = option.strip_prefix("no-").or_else(|| option.strip_prefix("no_"))?;
        (self.known(option).is_none() && self.is_boolean(name)).then(|| name.to_owned())
    }

    fn option(&mut self, written: &str, value: &str) {
        if self.known(written).is_some() || self.spec.allows(written) {
            self.put(written, value);
        } else {
            self.problems.push(self.spec.unknown(written));
        }
    }

    fn without_value(&mut self, written: &str) {
        if self.known(written).is_none() && !self.spec.allows(written) {
            self.problems.push(self.spec.unknown(written));
            return;
        }
        let name = self.known(written).map_or(written, |(name, _)| name).to_owned();
        let message =
            format!("has no value: write --{written} VALUE, or --{written}=VALUE if it starts with --");
        self.problems.push(ArgumentProblem::new(name, message));
    }

    /// A word without dashes. It may be a piece of a secret that lost its quotes: then it is not repeated.
    fn pair(&mut self, index: usize, word: &str) {
        let hide = !self.spec.secrets.is_empty();
        match word.split_once('=') {
            Some((name, value)) if self.known(name).is_some() || self.spec.allows(name) => {
                self.put(name, value)
            }
            Some((name, _)) if !hide => self.problems.push(self.spec.unknown(name)),
            _ => {
                let shown = if hide { format!("word {}", index + 1) } else { quoted(word) };
                let message = format!("{shown} is not --name VALUE or name=VALUE of a known argument");
                self.problems.push(ArgumentProblem::new("", message));
            }
        }
    }

    fn put(&mut self, written: &str, text: &str) {
        let spec: &'a ArgSpec = self.spec;
        let root = &spec.schema;
        let any = Value::Bool(true);
        let (name, schema) = match self.known(written) {
            Some((name, schema)) => (name.to_owned(), schema),
            None => (written.to_owned(), root.get("additionalProperties").unwrap_or(&any)),
        };
        let types = types(root, schema);
        let result = match self.values.get_mut(&name) {
            Some(Value::Array(items)) if types.contains(&"array") => {
                coerce::array(root, schema, text).map(|more| items.extend(more))
            }
            Some(Value::Object(pairs)) if types.contains(&"object") => {
                coerce::object(root, schema, text).map(|more| pairs.extend(more))
            }
            Some(_) => Err("is given twice".to_owned()),
            None => coerce::coerce(root, schema, text).map(|value| {
                self.values.insert(name.clone(), value);
            }),
        };
        if let Err(message) = result {
            self.problems.push(ArgumentProblem::new(name, message));
        }
    }
}

impl ArgSpec {
    /// Whether the schema takes arguments of a name that `properties` does not list.
    pub(super) fn allows(&self, name: &str) -> bool {
        let additional = match self.schema.get("additionalProperties") {
            None | Some(Value::Bool(false)) => false,
            Some(_) => true,
        };
        let patterns = self.schema.get("patternProperties").and_then(Value::as_object);
        additional
            || patterns.is_some_and(|patterns| {
                patterns
                    .keys()
                    .any(|pattern| regex::Regex::new(pattern).is_ok_and(|regex| regex.is_match(name)))
            })
    }

    /// The problem of an argument that the schema does not take.
    pub(super) fn unknown(&self, name: &str) -> ArgumentProblem {
        let message = match nearest(name, properties(&self.schema).map(|(name, _)| name.as_str())) {
            Some(meant) => format!("is not an argument of this job: did you mean {meant}?"),
            None if properties(&self.schema).next().is_none() => {
                "is given, but the job takes no arguments".to_owned()
            }
            None => {
                let names: Vec<&str> =
                    properties(&self.schema).map(|(name, _)| name.as_str()).take(20).collect();
                format!("is not an argument of this job, which takes {}", names.join(", "))
            }
        };
        ArgumentProblem::new(name.chars().take(128).collect::<String>(), message)
    }
}
