//! The manifest's JSON Schema, for editors: the published file, and what keeps it in step with the parser.
//!
//! It says as much as a schema can (draft-07, which editors know best). It is stricter in one thing: keys that nobody
//! reads are warnings of the parser and errors of the schema.

/// `docs/manifest.schema.json`.
pub const TEXT: &str = include_str!("../../../docs/manifest.schema.json");

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{FIXED_NAMES, classic, entrypoint, v1, v1_job};
    use super::TEXT;

    fn keys(schema: &Value, pointer: &str) -> Vec<String> {
        let map = schema.pointer(pointer).and_then(Value::as_object).unwrap_or_else(|| panic!("{pointer}"));
        let mut keys: Vec<String> = map.keys().cloned().collect();
        keys.sort();
        keys
    }

    fn sorted(keys: &[&str]) -> Vec<String> {
        let mut keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        keys.sort();
        keys
    }

    #[test]
    fn has_the_keys_and_words_that_the_parser_knows() {
        let schema: Value = serde_json::from_str(TEXT).unwrap();
        let pairs: [(&str, &[&str]); 10] = [
            ("/definitions/classic/properties", &classic::KEYS),
            ("/definitions/entrypoint/properties", &entrypoint::KEYS),
            ("/definitions/v1/properties", &v1::KEYS),
            ("/definitions/v1/properties/metadata/properties", &v1::METADATA),
            ("/definitions/v1/properties/metadata/properties/maintainers/items/properties", &v1::MAINTAINER),
            ("/definitions/v1/properties/requires/properties", &v1::REQUIRES),
            ("/definitions/v1/properties/requires/properties/containers/items/properties", &v1::CONTAINER),
            ("/definitions/job/properties", &v1_job::JOB),
            ("/definitions/job/properties/argspec/properties", &v1_job::ARGSPEC),
            ("/definitions/argument/properties", &v1_job::ARG),
        ];
        for (pointer, known) in pairs {
            assert_eq!(keys(&schema, pointer), sorted(known), "{pointer}");
        }
        let tools = "/definitions/job/properties/requirements/properties";
        assert_eq!(keys(&schema, tools), sorted(&v1_job::REQUIREMENTS));
        assert_eq!(keys(&schema, &format!("{tools}/tools/items/properties")), sorted(&v1_job::TOOL));
        for pointer in ["/definitions/entrypoint", "/definitions/job"] {
            assert_eq!(
                schema.pointer(pointer).unwrap()["properties"]["id"]["not"]["enum"],
                json!(FIXED_NAMES)
            );
        }
        let argument = &schema["definitions"]["argument"]["properties"];
        assert_eq!(argument["type"]["enum"], json!(v1_job::TYPES));
        assert_eq!(argument["format"]["enum"], json!(v1_job::FORMATS));
        assert_eq!(schema["definitions"]["v1"]["properties"]["apiVersion"]["const"], v1::API_VERSION);
    }
}
