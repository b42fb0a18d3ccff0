//! JSON that strangers wrote, with one reading only: objects are objects, and no name stands twice.

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Most members of one object: headers have some ten.
const MAX_MEMBERS: usize = 256;

/// A JSON object in which no name stands twice: two readers could take different ones.
pub(super) struct Object(pub(super) Vec<(String, Value)>);

impl Object {
    pub(super) fn from_slice(bytes: &[u8], what: &str) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("{what} is no JSON object: {error}"))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(super) fn text(&self, name: &str) -> Result<&str, String> {
        self.get(name).and_then(Value::as_str).ok_or_else(|| format!("{name:?} is missing or no text"))
    }

    pub(super) fn time(&self, name: &str) -> Result<Option<OffsetDateTime>, String> {
        if self.get(name).is_none() {
            return Ok(None);
        }
        let time = OffsetDateTime::parse(self.text(name)?, &Rfc3339);
        time.map(Some).map_err(|error| format!("{name:?} is no time of RFC 3339: {error}"))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members: Vec<(String, Value)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if members.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom(format!("{name:?} stands twice")));
                    }
                    if members.len() == MAX_MEMBERS {
                        return Err(A::Error::custom(format!("more than {MAX_MEMBERS} members")));
                    }
                    members.push((name, map.next_value()?));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// A structure that must be written as an object: serde would take a list of its members, too.
pub(super) struct Structure<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Structure<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Structure<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Structure)
            }
        }
        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}
