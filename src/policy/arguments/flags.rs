//! The options of a job, for those who offer them.

use serde_json::Value;

use super::ArgSpec;
use super::help::type_words;
use super::schema::{deref, properties, types};

/// An option as it is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Without the dashes: `dry-run`, `no-dry-run`.
    pub name: String,
    /// The argument's own name.
    pub argument: String,
    /// Of the schema, else its type.
    pub description: String,
    /// Takes no value.
    pub is_switch: bool,
    /// The only values, where they are listed.
    pub values: Vec<String>,
    /// Its value is a path.
    pub is_path: bool,
}

impl ArgSpec {
    /// In the order of the schema; a boolean is two of them.
    pub fn flags(&self) -> Vec<Flag> {
        properties(&self.schema).flat_map(|(name, property)| self.flag(name, property)).collect()
    }

    fn flag(&self, name: &str, property: &Value) -> Vec<Flag> {
        let root = &self.schema;
        let (schema, types) = (deref(root, property), types(root, property));
        let description = property.get("description").or_else(|| schema.get("description"));
        let description = description.and_then(Value::as_str).map(str::to_owned);
        let members = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
        let flag = Flag {
            name: name.replace('_', "-"),
            argument: name.to_owned(),
            description: description.unwrap_or_else(|| type_words(root, schema, &types)),
            is_switch: types.as_slice() == ["boolean"],
            values: members
                .map(|member| match member {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                })
                .collect(),
            is_path: matches!(
                schema.get("format").and_then(Value::as_str),
                Some("path" | "file" | "directory")
            ),
        };
        if !flag.is_switch {
            return vec![flag];
        }
        let off = Flag { name: format!("no-{}", flag.name), ..flag.clone() };
        vec![Flag { values: Vec::new(), ..flag }, Flag { values: Vec::new(), ..off }]
    }
}
