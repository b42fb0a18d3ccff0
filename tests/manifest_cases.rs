//! The agreed cases of manifests (MA) and of arguments as manifests declare them (AX), by their ids: what the parser
//! says, and that the published JSON Schema says the same wherever a schema can.
#![allow(clippy::unwrap_used)]

use addonfs::policy::addon::{AddonManifest, Dialect, Program, schema};
use addonfs::policy::arguments::{ArgumentProblem, Arguments, Given};
use serde_json::{Map, Value, json};

const CLASSIC: &str = "name: backup-tools
version: 1.0.0
entrypoints:
  - id: backup
    command: [/addon/backup.sh]
    network: none
";

const V1: &str = "apiVersion: flwd.addon/v1
kind: AddOn
metadata: {name: Example Addon, id: example.addon, version: 1.2.3}
requires: {}
jobs:
  - id: example.job
    name: Example Job
    summary: Demo
    argspec: {args: [{name: input, type: string}]}
";

/// What is expected of a text.
enum Verdict {
    /// A manifest.
    Valid,
    /// None, with this pointer and these words; a schema sees it too.
    Wrong(&'static str, &'static str),
    /// None, and no schema can say so.
    Beyond(&'static str, &'static str),
    /// A manifest with a warning at this pointer; to the schema it is none.
    Warned(&'static str),
}
use Verdict::{Beyond, Valid, Warned, Wrong};

fn replaced(base: &str, from: &str, to: &str) -> String {
    assert!(base.contains(from), "{from}");
    base.replacen(from, to, 1)
}

fn c(from: &str, to: &str) -> String {
    replaced(CLASSIC, from, to)
}

fn v(from: &str, to: &str) -> String {
    replaced(V1, from, to)
}

fn arg(rest: &str) -> String {
    v("{name: input, type: string}", &format!("{{name: input, {rest}}}"))
}

fn cases() -> Vec<(&'static str, String, Verdict)> {
    let long = "x".repeat(241);
    let mut cases = vec![
        ("MA-01", CLASSIC.to_owned(), Valid),
        ("MA-02", c("id: backup\n    ", ""), Wrong("/entrypoints/0/id", "id is required")),
        (
            "MA-04",
            format!("{CLASSIC}  - {{id: backup, command: [/x]}}\n"),
            Beyond("/entrypoints/1/id", "used twice"),
        ),
        ("MA-05", c("network: none", "network: all"), Valid),
        ("MA-05", c("network: none", "network: bridge"), Wrong("/entrypoints/0/network", "all or none")),
        ("MA-13", V1.to_owned(), Valid),
        (
            "MA-14",
            format!("{V1}unexpected: true\n"),
            Wrong("/unexpected", "manifest.unexpected is not allowed"),
        ),
        ("MA-16", v("flwd.addon/v1", "v2"), Wrong("/apiVersion", "apiVersion must be flwd.addon/v1")),
        ("MA-19", v("Example Addon", "ab"), Wrong("/metadata/name", "3 to 128 characters")),
        ("MA-20", v("Demo", &long), Wrong("/jobs/0/summary", "241 characters")),
        ("MA-20", v("1.2.3", &format!("1.2.3, summary: {long}")), Wrong("/metadata/summary", "241")),
        ("MA-23", v("requires: {}\n", ""), Wrong("/requires", "requires section is required")),
        (
            "MA-25",
            v("requires: {}", "requires: {containers: [{image: x, verify_signatures: maybe}]}"),
            Wrong("/requires/containers/0/verify_signatures", "none of required"),
        ),
        ("AX-02", arg("type: string, format: secret, default: abc"), {
            Wrong("/jobs/0/argspec/args/0/default", "arg input: default forbidden for secret")
        }),
        (
            "AX-02",
            c(
                "network: none",
                "argspec: {type: object, properties: {token: {type: string, format: secret, default: abc}}}",
            ),
            Wrong(
                "/entrypoints/0/argspec/properties/token/default",
                "arg token: default forbidden for secret",
            ),
        ),
    ];
    for (base, old) in [(CLASSIC, "1.0.0"), (V1, "1.2.3")] {
        let pointer = if base == V1 { "/metadata/version" } else { "/version" };
        for good in ["1.0.0", "2.1.0-rc.1", "1.2.3+b.1"] {
            cases.push(("MA-07", replaced(base, old, good), Valid));
        }
        for bad in ["'1.0'", "v1.0.0", "latest", "''"] {
            cases.push(("MA-07", replaced(base, old, bad), Wrong(pointer, "not a semantic version")));
        }
    }
    for (id, good) in
        [("a", false), ("ab", false), ("abc", true), ("Abc", false), ("a.b_c-d", true), ("-ab", false)]
    {
        let verdict = if good { Valid } else { Wrong("/metadata/id", "3 to 64") };
        cases.push(("MA-17", v("example.addon", id), verdict));
    }
    for format in ["''", "path", "file", "directory", "secret"] {
        cases.push(("MA-22", arg(&format!("type: string, format: {format}")), Valid));
    }
    cases.push(("MA-22", arg("type: string, format: email"), {
        Wrong("/jobs/0/argspec/args/0/format", "none of path, file, directory, secret")
    }));
    cases.extend(more());
    cases
}

/// What has no id of its own: every further rule of the two dialects.
fn more() -> Vec<(&'static str, String, Verdict)> {
    let argument = |rest: &str, keyword: &'static str, words: &'static str| (arg(rest), keyword, words);
    let mut cases = vec![
        ("classic executor", c("network: none", "executor: container"), Valid),
        (
            "classic executor",
            c("network: none", "executor: proc"),
            Wrong("/entrypoints/0/executor", "container"),
        ),
        ("classic command", c("[/addon/backup.sh]", "/addon/backup.sh -v"), {
            Wrong("/entrypoints/0/command", "list of strings")
        }),
        ("classic command", c("[/addon/backup.sh]", "[]"), Wrong("/entrypoints/0/command", "no program")),
        (
            "classic resources",
            c("network: none", "resources: {cpu: 0.5, memory: 2GiB, timeout: 1h30m}"),
            Valid,
        ),
        ("classic resources", c("network: none", "resources: {cpu: 500m, memory: 1024}"), Valid),
        ("classic resources", c("network: none", "resources: {cpu: '-1'}"), {
            Wrong("/entrypoints/0/resources/cpu", "negative")
        }),
        ("classic resources", c("network: none", "resources: {memory: 2GB}"), {
            Wrong("/entrypoints/0/resources/memory", "ambiguous")
        }),
        ("classic resources", c("network: none", "resources: {timeout: '10'}"), {
            Wrong("/entrypoints/0/resources/timeout", "no unit")
        }),
        ("classic resources", c("network: none", "resources: {timeout: 0s}"), {
            Beyond("/entrypoints/0/resources/timeout", "zero")
        }),
        ("classic env", c("network: none", "env: {LEVEL: 3}"), Wrong("/entrypoints/0/env/LEVEL", "quote it")),
        ("classic env", c("network: none", "env: {FLWD_X: a}"), {
            Wrong("/entrypoints/0/env/FLWD_X", "set by addonfs")
        }),
        ("classic id", c("id: backup", "id: rootfs"), Wrong("/entrypoints/0/id", "every add-on's folder")),
        ("classic id", c("id: backup", "id: ../evil"), Wrong("/entrypoints/0/id", "directory name")),
        ("classic profile", c("network: none", "profile: strict"), Wrong("/entrypoints/0/profile", "secure")),
        ("classic unknown", c("network: none", "netwrok: none"), {
            Wrong("/entrypoints/0/netwrok", "did you mean network?")
        }),
        ("classic unknown", c("network: none", "colour: blue"), Warned("/entrypoints/0/colour")),
        ("classic argspec", c("network: none", "argspec: {type: array}"), {
            Wrong("/entrypoints/0/argspec", "type: object")
        }),
        ("classic argspec", c("network: none", "argspec: {type: object, required: [gone]}"), {
            Beyond("/entrypoints/0/argspec/required/0", "not in properties")
        }),
        ("classic argspec", c("network: none", "argspec: {type: object, properties: {x: {type: strin}}}"), {
            Wrong("/entrypoints/0/argspec/properties/x/type", "")
        }),
        (
            "classic metadata",
            c("version:", "metadata: {license: 3}\nversion:"),
            Wrong("/metadata/license", "quote it"),
        ),
        ("v1 kind", v("kind: AddOn", "kind: Addon"), Wrong("/kind", "kind must be AddOn")),
        (
            "v1 without apiVersion",
            v("apiVersion: flwd.addon/v1\n", ""),
            Wrong("/apiVersion", "apiVersion is required"),
        ),
        ("v1 metadata", v("version: 1.2.3", "version: 1.2.3, homepage: example"), {
            Wrong("/metadata/homepage", "address of a web page")
        }),
        ("v1 metadata", v("1.2.3}", "1.2.3, maintainers: [{email: a@b}]}"), {
            Wrong("/metadata/maintainers/0/name", "name is required")
        }),
        (
            "v1 metadata",
            v(
                "1.2.3}",
                "1.2.3, homepage: 'https://x.org', license: MIT, summary: s, description: d, maintainers: [{name: A, email: a@b, url: 'https://x.org'}]}",
            ),
            Valid,
        ),
        ("v1 metadata", v("1.2.3}", "1.2.3, licence: MIT}"), {
            Wrong("/metadata/licence", "manifest.metadata.licence is not allowed (did you mean license?)")
        }),
        (
            "v1 requires",
            v(
                "{}",
                "{flwd: '>=1.2.0 <2.0.0', permissions: [a], containers: [{image: x, platform: linux/amd64, verify_signatures: required}]}",
            ),
            Valid,
        ),
        ("v1 requires", v("{}", "{flwd: 'yes!'}"), Wrong("/requires/flwd", "version range")),
        ("v1 requires", v("{}", "{containers: [{}]}"), Wrong("/requires/containers/0/image", "required")),
        ("v1 jobs", v("Example Job", "''"), Wrong("/jobs/0/name", "empty")),
        ("v1 jobs", v("    summary: Demo\n", ""), Wrong("/jobs/0/summary", "summary is required")),
        ("v1 jobs", v("id: example.job", "id: ab"), Wrong("/jobs/0/id", "not the name of a job")),
        ("v1 jobs", v("id: example.job", "id: 1abc"), Wrong("/jobs/0/id", "not the name of a job")),
        ("v1 jobs", v("id: example.job", "id: addon"), Wrong("/jobs/0/id", "every add-on's folder")),
        ("v1 jobs", v("id: example.job", "id: a:b.c"), Valid),
        ("v1 jobs", format!("{V1}  - {{id: example.job, name: x, summary: y, argspec: {{}}}}\n"), {
            Beyond("/jobs/1/id", "used twice")
        }),
        ("v1 jobs", v("summary: Demo", "summary: Demo\n    command: [/x]"), {
            Wrong("/jobs/0/command", "manifest.jobs[0].command is not allowed")
        }),
        (
            "v1 jobs",
            v(
                "summary: Demo",
                "summary: Demo\n    requirements: {tools: [{name: pg_dump, version: '>=16'}]}",
            ),
            Valid,
        ),
        ("v1 jobs", v("summary: Demo", "summary: Demo\n    requirements: {tools: [{version: '1'}]}"), {
            Wrong("/jobs/0/requirements/tools/0/name", "required")
        }),
        ("v1 argspec", v("argspec: {args: [{name: input, type: string}]}", "description: d"), {
            Wrong("/jobs/0/argspec", "argspec is required")
        }),
        (
            "v1 argspec",
            v("[{name: input, type: string}]", "[{name: a-b, type: string}, {name: a_b, type: string}]"),
            { Beyond("/jobs/0/argspec/args/1/name", "the same variable") },
        ),
        (
            "v1 argspec",
            v("[{name: input, type: string}]", "[{name: a, type: string}, {name: a, type: string}]"),
            { Beyond("/jobs/0/argspec/args/1/name", "used twice") },
        ),
        (
            "v1 argspec",
            arg("type: array, items_enum: [a, b], default: [a], required: true, description: d"),
            Valid,
        ),
        ("v1 argspec", arg("type: integer, enum: [1, 2], default: 2"), Valid),
    ];
    for (text, keyword, words) in [
        argument("type: text", "/jobs/0/argspec/args/0/type", "none of string"),
        argument("required: true", "/jobs/0/argspec/args/0/type", "type is required"),
        argument("type: string, required: yes", "/jobs/0/argspec/args/0/required", "true or false"),
        argument("type: string, enum: []", "/jobs/0/argspec/args/0/enum", "empty"),
        argument("type: string, items_enum: [a]", "/jobs/0/argspec/args/0/items_enum", "for lists"),
        argument("type: integer, format: secret", "/jobs/0/argspec/args/0/name", "type: string"),
        argument("type: string, choices: [a]", "/jobs/0/argspec/args/0/choices", "is not allowed"),
    ] {
        cases.push(("v1 argument", text, Wrong(keyword, words)));
    }
    for (text, keyword, words) in [
        argument("type: integer, default: lots", "/jobs/0/argspec/args/0/default", "does not fit"),
        argument("type: string, enum: [a, 3]", "/jobs/0/argspec/args/0/enum/1", "quote it: \"3\""),
        argument(
            "type: array, items_enum: [a], default: [b]",
            "/jobs/0/argspec/args/0/default",
            "does not fit",
        ),
        argument("type: integer, default: 0755", "/jobs/0/argspec/args/0/default", "different numbers"),
    ] {
        cases.push(("v1 argument", text, Beyond(keyword, words)));
    }
    cases
}

fn as_json(text: &str) -> Value {
    addonfs::policy::yaml::parse(text.as_bytes()).unwrap().to_json()
}

#[test]
fn the_parser_and_the_schema_say_what_is_agreed() {
    let schema: Value = serde_json::from_str(schema::TEXT).unwrap();
    let schema = jsonschema::draft7::new(&schema).unwrap();
    for (id, text, verdict) in cases() {
        let parsed = AddonManifest::parse(text.as_bytes());
        let by_schema = schema.is_valid(&as_json(&text));
        match verdict {
            Valid => {
                let manifest = parsed.unwrap_or_else(|problems| panic!("{id}: {problems:#?}\n{text}"));
                assert_eq!(manifest.warnings, [], "{id}");
                let errors: Vec<String> =
                    schema.iter_errors(&as_json(&text)).map(|e| e.to_string()).collect();
                assert_eq!(errors, [""; 0], "{id}: the schema refuses\n{text}");
            }
            Warned(pointer) => {
                assert_eq!(parsed.unwrap().warnings[0].pointer, pointer, "{id}");
                assert!(!by_schema, "{id}: the schema takes\n{text}");
            }
            Wrong(pointer, words) | Beyond(pointer, words) => {
                let problems = parsed.unwrap_err();
                let told = problems.iter().find(|problem| problem.pointer == pointer);
                let told = told.unwrap_or_else(|| panic!("{id}: {pointer}: {problems:#?}\n{text}"));
                assert!(told.to_string().contains(words), "{id}: {told}");
                assert!(told.line > 0 && told.column > 0, "{id}: {told}");
                assert_eq!(problems.len(), 1, "{id}: {problems:#?}");
                assert_eq!(by_schema, matches!(verdict, Beyond(..)), "{id}: by the schema\n{text}");
            }
        }
    }
}

#[test]
fn v1_lists_every_problem_at_once() {
    let text = "apiVersion: flwd.addon/v2\nkind: Addon\nmetadata: {name: ab, id: -x, version: v1, extra: 1}\njobs:\n- {id: A, name: x, argspec: {args: [{name: 1 2, type: string}]}}\n- 7\n";
    let problems = AddonManifest::parse(text.as_bytes()).unwrap_err();
    let mut pointers: Vec<&str> = problems.iter().map(|problem| problem.pointer.as_str()).collect();
    pointers.sort_unstable();
    let expected = [
        "/apiVersion",
        "/jobs/0/argspec/args/0/name",
        "/jobs/0/id",
        "/jobs/0/summary",
        "/jobs/1",
        "/kind",
        "/metadata/extra",
        "/metadata/id",
        "/metadata/name",
        "/metadata/version",
        "/requires",
    ];
    assert_eq!(pointers, expected, "{problems:#?}");
}

/// MA-13: both dialects become one model.
#[test]
fn v1_becomes_the_same_model() {
    let text = v(
        "args: [{name: input, type: string}]",
        "args: [{name: mode, type: string, required: true, enum: [quick, full]}, {name: tags, type: array, items_enum: [a, b]}, {name: token, type: string, format: secret}]",
    );
    let manifest = AddonManifest::parse(text.as_bytes()).unwrap();
    assert_eq!((manifest.dialect, manifest.name.as_str()), (Dialect::V1, "Example Addon"));
    assert_eq!(manifest.metadata["id"], "example.addon");
    let job = &manifest.entrypoints[0];
    assert_eq!((job.id.as_str(), job.description.as_deref()), ("example.job", Some("Demo")));
    assert_eq!(job.program, Program::ImageEntrypoint);
    let config = addonfs::policy::image::ImageConfig {
        entrypoint: vec!["/bin/tool".into(), "--".into()],
        ..Default::default()
    };
    assert_eq!(job.argv(&config), ["/bin/tool", "--", "example.job"]);
    manifest.check_image(&config).unwrap();
    let refused = manifest.check_image(&Default::default()).unwrap_err();
    assert_eq!(refused.code.as_str(), "E_ADDON_MANIFEST");
    assert_eq!(job.argspec.secrets, ["token"]);
    assert_eq!(
        job.argspec.schema,
        json!({"type": "object", "required": ["mode"], "additionalProperties": false, "properties": {
            "mode": {"type": "string", "enum": ["quick", "full"]},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
            "token": {"type": "string", "format": "secret"}}})
    );
    let extends =
        AddonManifest::parse(v("summary: Demo", "summary: Demo\n    extends: other").as_bytes()).unwrap();
    assert_eq!(extends.warnings[0].pointer, "/jobs/0/extends");
}

/// Arguments, and the variables that they become.
type Resolved = (Result<Arguments, Vec<ArgumentProblem>>, Vec<(String, String)>);

/// Words to the arguments of the only job of a v1 manifest with this argument.
fn resolve(argument: &str, words: &[&str]) -> Resolved {
    let text = v("{name: input, type: string}", argument);
    let manifest = AddonManifest::parse(text.as_bytes()).unwrap();
    let spec = &manifest.entrypoints[0].argspec;
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    let arguments = spec.resolve(Given::Words(words));
    let env = arguments.as_ref().map(|arguments| spec.env(arguments)).unwrap_or_default();
    (arguments, env)
}

#[test]
fn ax_01_an_enum_by_name() {
    let mode = "{name: mode, type: string, required: true, enum: [quick, full]}";
    let (arguments, env) = resolve(mode, &["mode=quick"]);
    assert_eq!(arguments.unwrap().public_json(), r#"{"mode":"quick"}"#);
    assert!(env.contains(&("ARG_MODE".to_owned(), "quick".to_owned())), "{env:?}");
    assert!(env.contains(&("FLWD_ARGS_JSON".to_owned(), r#"{"mode":"quick"}"#.to_owned())), "{env:?}");
    let problems = resolve(mode, &["mode=slow"]).0.unwrap_err();
    assert_eq!(problems[0].arg, "mode");
    assert_eq!(resolve(mode, &[]).0.unwrap_err()[0].message, "is required");
}

#[test]
fn ax_04_objects_are_pairs() {
    let meta = "{name: meta, type: object}";
    let problems = resolve(meta, &["--meta", "invalidpair"]).0.unwrap_err();
    assert!(problems[0].message.contains("expected k=v"), "{problems:?}");
    let given = resolve(meta, &["--meta", "a=1", "--meta", "b=x"]).0.unwrap();
    let expected: Map<String, Value> = Map::from_iter([("meta".to_owned(), json!({"a": "1", "b": "x"}))]);
    assert_eq!(given.masked, expected);
}

#[test]
fn ax_05_names_of_variables() {
    let (_, env) = resolve("{name: image-tag, type: string}", &["--image-tag", "v1"]);
    assert!(env.contains(&("ARG_IMAGE_TAG".to_owned(), "v1".to_owned())), "{env:?}");
}

/// AX-08 as far as arguments go: a secret is in no variable. That it is a 0600 file of the job's user is shown where
/// containers run.
#[test]
fn ax_08_secrets_are_no_variables() {
    let (arguments, env) = resolve("{name: token, type: string, format: secret}", &["--token", "hunter2"]);
    assert_eq!(arguments.unwrap().secrets[0].1.as_str(), "hunter2");
    assert_eq!(env, [("FLWD_ARGS_JSON".to_owned(), "{}".to_owned())]);
}

/// Cases whose tests are where their code is: file and name. (AX-11 has none: nothing that a manifest or a caller says
/// becomes the destination of a mount.)
const ELSEWHERE: [(&str, &str, &str); 13] = [
    ("MA-08", "src/jobs/descriptor.rs", "fields_are_those_of_the_table"),
    ("MA-11", "src/policy/reference.rs", "pinning_needs_a_digest"),
    ("MA-26", "src/policy/source/parse.rs", "refuses_with_line_and_column"),
    ("RP-01", "src/policy/quantity.rs", "cpu"),
    ("RP-02", "src/policy/quantity.rs", "memory"),
    ("RP-04", "src/policy/ceiling.rs", "a_hint_is_cut_and_a_request_refused"),
    ("RP-05", "src/policy/ceiling.rs", "a_hint_is_cut_and_a_request_refused"),
    ("RP-08", "src/policy/reference.rs", "scheme_is_stripped_only_by_request"),
    ("AX-07", "src/jobs/oci/mask.rs", "split_overlapping_and_several_lines"),
    (
        "AX-08",
        "tests/executor_oci/inside.rs",
        "secrets_are_files_of_the_jobs_user_and_masked_in_every_output",
    ),
    ("AX-09", "src/jobs/oci/bundle.rs", "a_secure_job_has_nothing_it_needs_not"),
    ("AX-12", "tests/executor_oci/ends.rs", "without_a_runtime_there_are_words"),
    ("AX-14", "src/jobs/plan/tests.rs", "inherited_variables_need_the_override_and_give_way"),
];

#[test]
fn tests_that_are_elsewhere_are_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (id, file, name) in ELSEWHERE {
        let code = std::fs::read_to_string(root.join(file)).unwrap();
        assert!(code.contains(&format!("fn {name}()")), "{id}: {file} has no {name}");
    }
}

/// MA-10: without a mountPath an add-on is shown under its source's name.
#[test]
fn ma_10_the_name_is_the_mount_path() {
    let text = format!(
        "policy: {{allowed_registries: ['*']}}\nsources:\n  - {{name: addon, type: oci, image: 'localhost:5000/a@{}'}}\n",
        addonfs::policy::digest::Digest::of(b"x")
    );
    let dialect = addonfs::policy::fields::Dialect::Addonfs;
    let nothing = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    let loaded = addonfs::policy::source::parse::load(
        "addonfs.yaml",
        text.as_bytes(),
        dialect,
        "/".as_ref(),
        &nothing,
    );
    assert_eq!(loaded.unwrap().sources[0].mount_path, "addon");
}
