//! From bytes to a manifest of whichever dialect.

use super::fields::{Fields, Report};
use super::{AddonManifest, Problem, classic, v1};
use crate::policy::yaml::{self, Kind, Node};

/// Most problems reported: nobody reads on after so many.
const MAX_PROBLEMS: usize = 100;

impl AddonManifest {
    /// Reads a manifest. On failure every problem is listed, in the order of the file, at least one.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<Problem>> {
        let root = yaml::parse(bytes).map_err(|mut problem| {
            "the manifest must be one YAML document".clone_into(&mut problem.hint);
            vec![problem]
        })?;
        let mut report = Report::default();
        let manifest = document(&root, &mut report);
        match manifest {
            Some(manifest) if report.problems.is_empty() => {
                Ok(Self { warnings: report.warnings, ..manifest })
            }
            _ => {
                report.problems.sort_by_key(|problem| (problem.line, problem.column));
                report.problems.truncate(MAX_PROBLEMS);
                Err(report.problems)
            }
        }
    }
}

fn document(root: &Node, report: &mut Report) -> Option<AddonManifest> {
    if !matches!(root.kind, Kind::Map(_)) {
        let message = format!("the manifest must be a mapping, not {}", root.type_name());
        report.problem(root, "", message, "start with name:, version: and entrypoints:");
        return None;
    }
    let fields = Fields { node: root, pointer: "" };
    if v1::is_meant(root) { v1::document(fields, report) } else { classic::document(fields, report) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::addon::{Network, Program, Resources, denied};
    use crate::policy::code::Code;

    const SEED: &str = r#"
name: backup-tools
version: 1.0.0
description: Database backups
metadata: {author: Platform, license: MIT}
entrypoints:
  - id: backup
    name: Backup
    command: ["/addon/backup.sh", "--verbose"]
    argspec:
      type: object
      properties:
        database: {type: string}
        s3_bucket: {type: string, default: b}
        token: {type: string, format: secret}
      required: [database]
    resources: {cpu: "0.5", memory: 256Mi, timeout: 10m}
    env: {LEVEL: "3"}
    network: all
    annotations: {flowd.db.required: "true"}
  - id: restore
    executor: container
    command: [/addon/restore.sh]
"#;

    fn problems(text: &str) -> Vec<Problem> {
        AddonManifest::parse(text.as_bytes()).unwrap_err()
    }

    /// The seed manifest with one piece replaced.
    fn with(from: &str, to: &str) -> String {
        assert!(SEED.contains(from), "{from}");
        SEED.replacen(from, to, 1)
    }

    #[test]
    fn reads_the_classic_dialect() {
        let manifest = AddonManifest::parse(SEED.as_bytes()).unwrap();
        assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("backup-tools", "1.0.0"));
        let [backup, restore] = manifest.entrypoints.as_slice() else { panic!() };
        assert_eq!(backup.program, Program::Command(vec!["/addon/backup.sh".into(), "--verbose".into()]));
        assert_eq!(backup.argspec.secrets, ["token"]);
        let timeout = Some(Duration::from_secs(600));
        let expected = Resources { cpu_millis: Some(500), memory_bytes: Some(256 << 20), timeout };
        assert_eq!(backup.resources, expected);
        assert_eq!((backup.network, restore.network), (Network::All, Network::None));
        assert_eq!(backup.env["LEVEL"], "3");
        assert_eq!(backup.annotations["flowd.db.required"], "true");
        assert_eq!((restore.name.as_str(), restore.argspec.secrets.len()), ("restore", 0));
        assert!(manifest.warnings.is_empty());
    }

    #[test]
    fn names_the_place_of_each_problem() {
        let cases = [
            (with("name: backup-tools\n", ""), 2, "", "/name"),
            (with("version: 1.0.0", "version: 1.0"), 3, "three numbers: 1.0.0", "/version"),
            (with("version: 1.0.0", "version: v1.0.0"), 3, "without the v: 1.0.0", "/version"),
            (with("version: 1.0.0", "version: latest"), 3, "1.0.0", "/version"),
            (with("version: 1.0.0", "version: ''"), 3, "1.0.0", "/version"),
            (with("license: MIT", "license: 3"), 5, "quote it: \"3\"", "/metadata/license"),
            (with("id: backup\n", "title: x\n"), 7, "", "/entrypoints/0/id"),
            (with("id: restore", "id: backup"), 21, "line 7", "/entrypoints/1/id"),
            (with("id: restore", "id: rootfs"), 21, "another id", "/entrypoints/1/id"),
            (with("id: restore", "id: manifest.yaml"), 21, "another id", "/entrypoints/1/id"),
            (with("id: restore", "id: ../evil"), 21, "a-z", "/entrypoints/1/id"),
            (with("id: restore", "id: Restore"), 21, "a-z", "/entrypoints/1/id"),
            (with("[/addon/restore.sh]", "/addon/restore.sh -v"), 23, "\"-v\"", "/entrypoints/1/command"),
            (with("[/addon/restore.sh]", "[]"), 23, "", "/entrypoints/1/command"),
            (
                with("[/addon/restore.sh]", "[/bin/sleep, 5]"),
                23,
                "quote it: \"5\"",
                "/entrypoints/1/command/1",
            ),
            (with("executor: container", "executor: proc"), 22, "remove", "/entrypoints/1/executor"),
            (
                with("{type: string}", "{type: strin}"),
                13,
                "",
                "/entrypoints/0/argspec/properties/database/type",
            ),
            (
                with("default: b", "default: 0755"),
                14,
                "quote",
                "/entrypoints/0/argspec/properties/s3_bucket/default",
            ),
            (with("[database]", "[databse]"), 16, "", "/entrypoints/0/argspec/required/0"),
            (
                with("format: secret", "format: secret, default: x"),
                15,
                "",
                "/entrypoints/0/argspec/properties/token/default",
            ),
            (with("cpu: \"0.5\"", "cpu: lots"), 17, "", "/entrypoints/0/resources/cpu"),
            (with("256Mi", "256MB"), 17, "", "/entrypoints/0/resources/memory"),
            (with("timeout: 10m", "timeout: -10m"), 17, "", "/entrypoints/0/resources/timeout"),
            (with("LEVEL: \"3\"", "LEVEL: 3"), 18, "quote it", "/entrypoints/0/env/LEVEL"),
            (with("LEVEL", "ARG_X"), 18, "another name", "/entrypoints/0/env/ARG_X"),
            (with("LEVEL", "RUN_DIR"), 18, "another name", "/entrypoints/0/env/RUN_DIR"),
            (with("network: all", "network: bridge"), 19, "", "/entrypoints/0/network"),
            (with("network: all", "profile: strict"), 19, "use secure", "/entrypoints/0/profile"),
            (with("network: all", "netwrok: all"), 19, "did you mean network", "/entrypoints/0/netwrok"),
            (with("annotations", "argspec"), 20, "", ""),
        ];
        for (text, line, hint, pointer) in cases {
            let found = problems(&text);
            let [problem] = found.as_slice() else { panic!("{pointer}: {found:#?}") };
            assert_eq!((problem.line, problem.pointer.as_str()), (line, pointer), "{problem}");
            assert!(problem.column > 0 && problem.to_string().contains(hint), "{problem}");
        }
    }

    #[test]
    fn lists_every_problem_at_once() {
        let text =
            "name: 3\nversion: v1\nentrypoints:\n- command: run me\n  resources: {cpu: x, memory: y}\n- 7\n";
        let found = problems(text);
        let pointers: Vec<&str> = found.iter().map(|problem| problem.pointer.as_str()).collect();
        assert_eq!(
            pointers,
            [
                "/name",
                "/version",
                "/entrypoints/0/id",
                "/entrypoints/0/command",
                "/entrypoints/0/resources/cpu",
                "/entrypoints/0/resources/memory",
                "/entrypoints/1"
            ]
        );
        let denied = denied(&found);
        assert_eq!(denied.code, Code::AddonManifest);
        assert!(denied.message.contains("line 4, column 12: /entrypoints/0/command: "), "{denied}");
        assert!(!denied.message.contains('\n'));
    }

    #[test]
    fn versions() {
        for good in ["1.0.0", "2.1.0-rc.1", "1.2.3+b.1"] {
            AddonManifest::parse(with("1.0.0", good).as_bytes()).unwrap();
        }
        for bad in ["1.0", "v1.0.0", "latest", "''", "1.2.3.4", "01.2.3"] {
            problems(&with("1.0.0", bad));
        }
    }

    #[test]
    fn what_is_no_manifest() {
        for text in ["", "- a\n", "a: [\n", "entrypoints: 3\n", "\u{0}", "name: x\nname: y\n"] {
            assert!(!problems(text).is_empty());
        }
        assert!(!AddonManifest::parse(b"\xff\xfe").unwrap_err().is_empty());
    }

    #[test]
    fn keys_that_nobody_reads_are_warnings() {
        let manifest =
            AddonManifest::parse(with("network: all", "network: all\n    colour: blue").as_bytes());
        let warnings = manifest.unwrap().warnings;
        assert_eq!(warnings.len(), 1);
        assert_eq!((warnings[0].line, warnings[0].pointer.as_str()), (20, "/entrypoints/0/colour"));
    }
}
