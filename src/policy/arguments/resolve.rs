//! What a caller gave to validated [`Arguments`]: unknown names refused, defaults applied, schema checked, secrets
//! taken out; in this order, and every problem listed.

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::compile::check_name;
use super::env::variable;
use super::schema::{deref, properties};
use super::{ArgSpec, ArgumentProblem, Arguments, Given, MASK, words};

/// Most defaults filled in at once: a recursive schema whose default contains itself would never end.
const MAX_DEFAULTS: usize = 4096;

/// Deepest object that gets defaults; deeper ones are validated as given.
const MAX_DEPTH: usize = 32;

/// Most problems reported; a list of a million wrong items is one mistake.
const MAX_PROBLEMS: usize = 100;

/// Longest message, in characters: the schema library quotes the value whole.
const MAX_MESSAGE: usize = 300;

impl ArgSpec {
    /// Applies defaults, then validates.
    pub fn resolve(&self, given: Given) -> Result<Arguments, Vec<ArgumentProblem>> {
        let (mut values, mut problems) = match given {
            Given::Words(list) => words::read(self, &list),
            Given::Json(values) => (values, Vec::new()),
        };
        self.take_out_unknown(&mut values, &mut problems);
        self.check_values(&values, &mut problems);
        let mut left = MAX_DEFAULTS;
        fill_defaults(&self.schema, &self.schema, &mut values, MAX_DEPTH, &mut left);
        if left == 0 {
            problems
                .push(ArgumentProblem::new("", "the defaults of the argspec contain each other without end"));
        }
        let instance = Value::Object(self.in_order(values));
        self.validate(&instance, &mut problems);
        if !problems.is_empty() {
            problems.truncate(MAX_PROBLEMS);
            return Err(problems);
        }
        Ok(self.split(instance))
    }

    fn take_out_unknown(&self, values: &mut Map<String, Value>, problems: &mut Vec<ArgumentProblem>) {
        let listed = self.schema.get("properties").and_then(Value::as_object);
        let mut variables: Vec<String> = properties(&self.schema).map(|(name, _)| variable(name)).collect();
        values.retain(|name, _| {
            if listed.is_some_and(|listed| listed.contains_key(name)) {
                return true;
            }
            let problem = if !self.allows(name) {
                Some(self.unknown(name))
            } else if let Err(message) = check_name(name) {
                Some(ArgumentProblem::new("", message))
            } else if variables.contains(&variable(name)) {
                let message = format!("is the same variable {} as another argument", variable(name));
                Some(ArgumentProblem::new(name.as_str(), message))
            } else {
                None
            };
            variables.push(variable(name));
            let keep = problem.is_none();
            problems.extend(problem);
            keep
        });
    }

    /// What no schema can say: a mask is no secret, a variable holds no NUL, and a file is read by who names it.
    fn check_values(&self, values: &Map<String, Value>, problems: &mut Vec<ArgumentProblem>) {
        for (name, value) in values {
            if value.get("$file").is_some() {
                let message = "$file stands for a file's content where `run` and `plan` are executed, which read it \
                               with the caller's rights: give the value itself here";
                problems.push(ArgumentProblem::new(name.as_str(), message));
            }
            let Value::String(text) = value else { continue };
            if self.secrets.contains(name) {
                if text == MASK {
                    let message =
                        format!("{MASK} stands for a value that is not shown: give the value itself");
                    problems.push(ArgumentProblem::new(name.as_str(), message));
                }
            } else if text.contains('\0') {
                problems.push(ArgumentProblem::new(
                    name.as_str(),
                    "holds a NUL, which no environment variable can",
                ));
            }
        }
    }

    /// An argument that could not be read has its problem already, and is not reported as missing too.
    fn validate(&self, instance: &Value, problems: &mut Vec<ArgumentProblem>) {
        let told: Vec<String> = problems.iter().map(|problem| problem.arg.clone()).collect();
        for error in self.validator().iter_errors(instance) {
            let problem = self.problem(&error);
            if problems.len() >= MAX_PROBLEMS {
                break;
            }
            if !told.contains(&problem.arg) && !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    }

    fn problem(&self, error: &ValidationError<'_>) -> ArgumentProblem {
        let pointer = error.instance_path().to_string();
        let mut path: Vec<String> =
            pointer.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~")).collect();
        // An error of the whole object may quote it whole, secrets included.
        let hide = match path.first() {
            Some(first) => self.secrets.contains(first),
            None => !self.secrets.is_empty(),
        };
        let message = match error.kind() {
            ValidationErrorKind::Required { property } => {
                path.extend(property.as_str().map(str::to_owned));
                "is required".to_owned()
            }
            _ if hide => error.masked().to_string(),
            _ => error.to_string(),
        };
        let message = match message.char_indices().nth(MAX_MESSAGE) {
            Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
            None => message,
        };
        ArgumentProblem::new(path.join("."), message)
    }

    fn in_order(&self, mut values: Map<String, Value>) -> Map<String, Value> {
        let mut ordered = Map::new();
        for (name, _) in properties(&self.schema) {
            if let Some(value) = values.remove(name) {
                ordered.insert(name.clone(), value);
            }
        }
        ordered.append(&mut values);
        ordered
    }

    fn split(&self, instance: Value) -> Arguments {
        let mut masked = match instance {
            Value::Object(values) => values,
            _ => Map::new(),
        };
        let mut secrets = Vec::new();
        for name in &self.secrets {
            if let Some(slot) = masked.get_mut(name)
                && let Value::String(value) = std::mem::replace(slot, Value::from(MASK))
            {
                secrets.push((name.clone(), Zeroizing::new(value)));
            }
        }
        Arguments { masked, secrets }
    }
}

/// Fills what is missing in `values` from the `default`s of `schema`, also inside objects and lists that are there.
/// An object that is absent and has no default itself stays absent.
fn fill_defaults(
    root: &Value,
    schema: &Value,
    values: &mut Map<String, Value>,
    depth: usize,
    left: &mut usize,
) {
    for (name, property) in properties(schema) {
        let target = deref(root, property);
        if !values.contains_key(name)
            && let Some(default) = property.get("default").or_else(|| target.get("default"))
        {
            if *left == 0 {
                return;
            }
            *left -= 1;
            values.insert(name.clone(), default.clone());
        }
        if let (Some(value), Some(depth)) = (values.get_mut(name), depth.checked_sub(1)) {
            fill_inside(root, target, value, depth, left);
        }
    }
}

fn fill_inside(root: &Value, schema: &Value, value: &mut Value, depth: usize, left: &mut usize) {
    match value {
        Value::Object(values) => fill_defaults(root, schema, values, depth, left),
        Value::Array(items) => {
            let Some((schema, depth)) = schema.get("items").zip(depth.checked_sub(1)) else { return };
            let schema = deref(root, schema);
            items.iter_mut().for_each(|item| fill_inside(root, schema, item, depth, left));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> ArgSpec {
        ArgSpec::compile(json!({"type": "object",
            "properties": {
                "database": {"type": "string", "minLength": 2},
                "s3_bucket": {"type": "string"},
                "mode": {"type": "string", "enum": ["quick", "full"], "default": "quick"},
                "level": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
                "ratio": {"type": "number"},
                "verbose": {"type": "boolean"},
                "tables": {"type": "array", "items": {"type": "string"}},
                "ports": {"type": "array", "items": {"type": "integer"}},
                "meta": {"type": "object", "properties": {"max_size": {"type": "integer"}, "kind": {"default": "k"}}},
                "token": {"type": "string", "format": "secret", "maxLength": 12},
                "any": {"type": ["integer", "string", "null"]}
            },
            "required": ["database"]}))
        .unwrap()
    }

    fn words(line: &[&str]) -> Result<Arguments, Vec<ArgumentProblem>> {
        spec().resolve(Given::Words(line.iter().map(|word| (*word).to_owned()).collect()))
    }

    fn given(value: Value) -> Result<Arguments, Vec<ArgumentProblem>> {
        let Value::Object(map) = value else { panic!() };
        spec().resolve(Given::Json(map))
    }

    #[test]
    fn words_and_json_mean_the_same() {
        let cases: [(&[&str], Value); 18] = [
            (&[], json!({})),
            (&["--s3-bucket", "b"], json!({"s3_bucket": "b"})),
            (&["--s3_bucket=b=c"], json!({"s3_bucket": "b=c"})),
            (&["s3-bucket=b"], json!({"s3_bucket": "b"})),
            (&["--mode", "full", "--level", "9"], json!({"mode": "full", "level": 9})),
            (&["--ratio", "-0.5"], json!({"ratio": -0.5})),
            (&["--verbose"], json!({"verbose": true})),
            (&["--verbose", "false"], json!({"verbose": false})),
            (&["--no-verbose"], json!({"verbose": false})),
            (&["verbose=true"], json!({"verbose": true})),
            (&["--tables", "a,b", "--tables", "c"], json!({"tables": ["a", "b", "c"]})),
            (&["--tables", "[\"a,b\"]"], json!({"tables": ["a,b"]})),
            (&["--tables="], json!({"tables": []})),
            (&["--ports=80,443"], json!({"ports": [80, 443]})),
            (&["--meta", "max-size=3", "--meta", "owner=x"], json!({"meta": {"max_size": 3, "owner": "x"}})),
            (&["--meta={\"max_size\": 3}"], json!({"meta": {"max_size": 3}})),
            (&["--any", "7"], json!({"any": 7})),
            (&["--", "any=seven"], json!({"any": "seven"})),
        ];
        for (line, mut json) in cases {
            let mut line = line.to_vec();
            line.splice(0..0, ["--database", "app"]);
            json["database"] = "app".into();
            assert_eq!(words(&line).unwrap().masked, given(json).unwrap().masked, "{line:?}");
        }
    }

    #[test]
    fn defaults_come_before_validation_and_inside_objects() {
        let arguments = given(json!({"meta": {"max_size": 1}, "database": "app"})).unwrap();
        let expected =
            json!({"database": "app", "mode": "quick", "level": 3, "meta": {"max_size": 1, "kind": "k"}});
        assert_eq!(arguments.masked_json(), expected.to_string());
        let spec = ArgSpec::compile(json!({"type": "object", "required": ["n"],
            "properties": {"n": {"$ref": "#/$defs/n"}, "list": {"type": "array", "items": {"$ref": "#/$defs/o"}}},
            "$defs": {"n": {"type": "integer", "default": 4}, "o": {"type": "object", "properties": {"p": {"default": 1}}}}}));
        let Value::Object(list) = json!({"list": [{}, {"p": 2}]}) else { panic!() };
        let arguments = spec.unwrap().resolve(Given::Json(list)).unwrap();
        assert_eq!(Value::Object(arguments.masked), json!({"n": 4, "list": [{"p": 1}, {"p": 2}]}));
    }

    #[test]
    fn defaults_without_end_are_refused() {
        let node = json!({"type": "object", "properties": {
            "a": {"$ref": "#/$defs/n", "default": {}}, "b": {"$ref": "#/$defs/n", "default": {}}}});
        let spec = ArgSpec::compile(
            json!({"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": node}}),
        );
        let Value::Object(map) = json!({"n": {}}) else { panic!() };
        assert!(spec.unwrap().resolve(Given::Json(map)).is_err());
    }

    #[test]
    fn every_problem_is_listed_under_its_argument() {
        let found =
            words(&["--level", "ten", "--mdoe", "full", "--ratio", "x", "--meta", "invalidpair", "--tables"]);
        let found = found.unwrap_err();
        let args: Vec<&str> = found.iter().map(|problem| problem.arg.as_str()).collect();
        assert_eq!(args, ["level", "mdoe", "ratio", "meta", "tables", "database"], "{found:#?}");
        assert!(found[1].message.contains("did you mean mode?"));
        assert!(found[3].message.contains("expected k=v"));
        assert_eq!(found[5].message, "is required");
        let found = given(
            json!({"database": "a", "level": 10, "mode": "slow", "meta": {"max_size": "x"}, "nope": 1}),
        );
        let args: Vec<String> = found.unwrap_err().into_iter().map(|problem| problem.arg).collect();
        for arg in ["nope", "database", "level", "mode", "meta.max_size"] {
            assert!(args.iter().any(|found| found == arg), "{arg}: {args:?}");
        }
        assert!(
            words(&["--database", "app", "--level=1", "--level=2"]).unwrap_err()[0].message.contains("twice")
        );
    }

    #[test]
    fn names_outside_of_properties_need_consent() {
        let closed = ArgSpec::none();
        let Value::Object(map) = json!({"x": 1}) else { panic!() };
        assert!(closed.resolve(Given::Json(map.clone())).is_err());
        let open = json!({"type": "object", "additionalProperties": {"type": "integer"}});
        let open = ArgSpec::compile(open).unwrap();
        assert_eq!(open.resolve(Given::Words(vec!["--x=1".into()])).unwrap().masked, map);
        let pattern = ArgSpec::compile(json!({"type": "object", "patternProperties": {"^x": {}}})).unwrap();
        assert!(pattern.resolve(Given::Json(map)).is_ok());
        assert!(pattern.resolve(Given::Words(vec!["y=1".into()])).is_err());
        let clash = open.resolve(Given::Words(vec!["a-b=1".into(), "a_b=2".into()])).unwrap_err();
        assert!(clash[0].message.contains("ARG_A_B"), "{clash:?}");
    }

    #[test]
    fn secrets_are_masked_and_never_quoted() {
        let arguments = words(&["--database", "app", "--token", "hunter2"]).unwrap();
        assert_eq!(arguments.masked["token"], MASK);
        assert_eq!(arguments.secrets[0].0, "token");
        assert_eq!(arguments.secrets[0].1.as_str(), "hunter2");
        assert!(!arguments.masked_json().contains("hunter2"));
        assert_eq!(arguments.public_json(), r#"{"database":"app","mode":"quick","level":3}"#);
        let spec = spec();
        let env = spec.env(&arguments);
        assert!(env.iter().all(|(name, value)| name != "ARG_TOKEN" && !value.contains("hunter2")), "{env:?}");
        let refused = [
            words(&["--token", "hunter2-hunter2"]),
            words(&["--token", "x", "--token", "hunter2"]),
            words(&["--token", "my", "hunter2"]),
            words(&["--token", "my", "hunter2=x"]),
            given(json!({"token": {"hunter2": 1}})),
            given(json!({"token": ["hunter2"]})),
            given(json!({"database": "app", "token": MASK})),
        ];
        for refused in refused {
            let words = format!("{:?}", refused.unwrap_err());
            assert!(!words.contains("hunter2"), "{words}");
        }
        // A problem of the whole object must not quote it.
        let whole = json!({"type": "object", "properties": {"t": {"type": "string", "format": "secret"}, "u": {}},
            "oneOf": [{"required": ["u"]}, {"required": ["t", "u"]}]});
        let Value::Object(map) = json!({"t": "hunter2"}) else { panic!() };
        let words = ArgSpec::compile(whole).unwrap().resolve(Given::Json(map)).unwrap_err();
        assert!(!format!("{words:?}").contains("hunter2"), "{words:?}");
    }

    #[test]
    fn variables() {
        let spec = ArgSpec::compile(json!({"type": "object", "properties": {
            "image-tag": {"type": "string"}, "on": {"type": "boolean"}, "list": {"type": "array"}, "nil": {"type": "null"}}}))
        .unwrap();
        let Value::Object(map) = json!({"image-tag": "v1", "on": true, "list": [1, "a"], "nil": null}) else {
            panic!()
        };
        let env = spec.env(&spec.resolve(Given::Json(map.clone())).unwrap());
        let expected = [
            ("ARG_IMAGE_TAG", "v1"),
            ("ARG_ON", "true"),
            ("ARG_LIST", r#"[1,"a"]"#),
            ("FLWD_ARGS_JSON", r#"{"image-tag":"v1","on":true,"list":[1,"a"],"nil":null}"#),
        ];
        assert_eq!(env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let Value::Object(nul) = json!({"image-tag": "a\u{0}b"}) else { panic!() };
        assert!(spec.resolve(Given::Json(nul)).is_err());
    }

    #[test]
    fn help_tells_types_defaults_and_enums() {
        let help = spec().help("run");
        for words in [
            "--database VALUE",
            "required",
            "--[no-]verbose",
            "one of quick, full",
            "default 3",
            "list of integer",
            "at most 9",
        ] {
            assert!(help.contains(words), "{words}:\n{help}");
        }
        assert!(help.ends_with('\n'));
        assert!(ArgSpec::none().help("run").contains("takes no arguments"));
    }

    #[test]
    fn long_values_make_short_messages() {
        let found = given(json!({"database": "app", "level": "x".repeat(100_000)})).unwrap_err();
        assert!(found[0].message.len() < 1000);
    }
}
