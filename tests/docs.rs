//! docs/fields.md against the files that are really rendered: a key that is not told of, or told of and not there,
//! is a broken promise.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use addonfs::jobs::{AddonJobs, Asked, Caller, Jobs, JobsOptions};
use addonfs::policy::addon::{AddonManifest, Origin};
use addonfs::policy::arguments::Given;
use addonfs::policy::digest::Digest;
use addonfs::policy::event::EventSink;
use addonfs::policy::image::ImageConfig;
use addonfs::policy::source::parse;
use addonfs::policy::source::status::SourceStatus;
use common::scripted_executor::{ScriptedExecutor, World};
use serde_json::Value;

const FIELDS: &str = include_str!("../docs/fields.md");
const MANIFEST: &str = "name: tools\nversion: 1.0.0\nentrypoints:\n  - id: backup\n    command: [/b]\n";
const ME: Caller = Caller { uid: 1000, gid: 100, pid: 42 };

/// A row of a table: the keys of its first cell, the words in code of its second.
struct Row {
    keys: Vec<&'static str>,
    told: Vec<&'static str>,
}

/// The table below a heading.
fn table(heading: &str) -> Vec<Row> {
    let section =
        FIELDS.split("\n## ").find(|s| s.starts_with(heading)).unwrap_or_else(|| panic!("{heading}"));
    let code = |cell: &'static str| cell.split('`').skip(1).step_by(2).collect();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let mut cells = line.split('|').skip(1);
        Row { keys: code(cells.next().unwrap()), told: code(cells.next().unwrap()) }
    })
    .collect()
}

/// The top level key by key; below it every key of the objects in `inner`.
fn compare(heading: &str, rendered: &[u8], inner: &[&str]) {
    let rendered: Value = serde_json::from_slice(rendered).unwrap();
    let rendered = rendered.as_object().unwrap();
    let table = table(heading);
    let told: BTreeSet<&str> = table.iter().flat_map(|row| row.keys.iter().copied()).collect();
    let there: BTreeSet<&str> = rendered.keys().map(String::as_str).collect();
    assert_eq!(told, there, "{heading}: told (left) and rendered (right)");
    for name in inner {
        let row = table.iter().find(|row| row.keys.contains(name)).unwrap();
        for key in rendered[*name].as_object().unwrap_or_else(|| panic!("{heading}: {name}")).keys() {
            assert!(row.told.contains(&key.as_str()), "{heading}: {name}.{key} is not told of");
        }
    }
}

fn addon() -> AddonJobs {
    let digest = Digest::of(b"image");
    AddonJobs {
        source: "backup".into(),
        mount_path: "tools".into(),
        origin: Origin {
            source_kind: "oci".into(),
            source_name: "backup".into(),
            addon_name: "tools".into(),
            addon_version: "1.0.0".into(),
            addon_image_digest: digest,
            origin_revision: Some("r".into()),
            origin_source: Some("s".into()),
        },
        manifest: Arc::new(AddonManifest::parse(MANIFEST.as_bytes()).unwrap()),
        image_config: Arc::new(ImageConfig::default()),
        tree: digest,
        image: "localhost:5000/tools".into(),
        trust: Value::Null,
        refused_under: Vec::new(),
    }
}

#[test]
fn descriptors_plans_and_records() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let jobs = Jobs::open(
        JobsOptions::new(dir.path().to_owned(), PathBuf::from("/mnt/addons")),
        Arc::new(ScriptedExecutor(World::new())),
        EventSink::new(|_| {}),
        runtime.handle().clone(),
    )
    .unwrap();
    jobs.install(addon());
    let job = jobs.job("tools/backup").unwrap();
    compare("job.json", &job.descriptor_json(), &["addon", "limits", "resources"]);
    let plan = jobs.plan("tools/backup", Asked::plainly(Given::Words(vec![])), &ME).unwrap().to_json();
    compare("plan.json", &plan, &["executor_preview", "limits", "provenance", "requirements"]);

    let run = jobs.create_run("tools/backup", "n", &ME).unwrap();
    compare("record.json", &run.record_json(), &["who", "resources"]);
    jobs.run_write(&run, b"start", &ME).unwrap();
    compare("record.json", &run.record_json(), &["who", "resources", "policy"]);
    let record: Value = serde_json::from_slice(&run.record_json()).unwrap();
    for key in record["origin"].as_object().unwrap().keys() {
        assert!(FIELDS.contains(&format!("`{key}`")), "origin.{key} is not told of");
    }
}

#[test]
fn the_status_of_a_source() {
    let text = format!(
        "policy: {{allowed_registries: ['*']}}\nsources:\n  - {{type: oci, image: 'localhost:5000/a@{}'}}\n",
        Digest::of(b"x")
    );
    let loaded = parse::load(
        "addonfs.yaml",
        text.as_bytes(),
        addonfs::policy::fields::Dialect::Addonfs,
        "/".as_ref(),
        &|_| Err(std::io::ErrorKind::NotFound.into()),
    )
    .unwrap();
    let status = SourceStatus::new(&loaded.sources[0], 1, 0).to_json();
    compare(".addonfs/sources/", status.to_string().as_bytes(), &[]);
    let conditions = table(".addonfs/sources/").into_iter().find(|row| row.keys == ["conditions"]).unwrap();
    for condition in status["conditions"].as_array().unwrap() {
        for key in condition.as_object().unwrap().keys() {
            assert!(conditions.told.contains(&key.as_str()), "conditions.{key} is not told of");
        }
        let kind = condition["type"].as_str().unwrap();
        assert!(conditions.told.contains(&kind), "condition {kind} is not told of");
    }
}

#[test]
fn what_is_said_of_registries_is_tested() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let tests: String = files
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("registry_")))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let rows: Vec<&str> =
        include_str!("../docs/registries.md").lines().filter(|line| line.ends_with("` |")).collect();
    assert!(rows.len() > 10);
    for row in rows {
        let name = row.rsplit('`').nth(1).unwrap();
        assert!(tests.contains(&format!("async fn {name}()")), "there is no test {name}");
    }
}

/// docs/limits.md names each constant with its value.
#[test]
fn limits_are_those_of_the_code() {
    let rows: Vec<Vec<&str>> = include_str!("../docs/limits.md")
        .lines()
        .filter_map(|line| line.split('|').nth(3))
        .map(|cell| cell.split('`').skip(1).step_by(2).collect())
        .filter(|row: &Vec<&str>| row.len() == 3)
        .collect();
    assert!(rows.len() > 50, "{} rows", rows.len());
    for row in rows {
        let code = std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(row[0])).unwrap();
        let line = code.lines().find(|line| line.contains(&format!("const {}: ", row[1])));
        let line = line.unwrap_or_else(|| panic!("{} has no {}", row[0], row[1]));
        assert!(line.ends_with(&format!(" = {};", row[2])), "{}: {line}", row[0]);
    }
}
