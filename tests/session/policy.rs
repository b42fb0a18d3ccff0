//! Who may be stricter or looser than the host's policy says, and what becomes visible of it.

use crate::common::session::{Session, TOOLS};

/// Writes addonfs.yaml with this policy section.
fn configure(s: &Session, policy: &str, image: &str, lines: &str) {
    let sources =
        format!("sources:\n  - {{name: tools, type: oci, image: '{image}', mountPath: tools{lines}}}\n");
    s.write("addonfs.yaml", format!("cache: {{keep_free: 0}}\npolicy: {{{policy}}}\n{sources}"));
}

/// What a job says of its root file system.
const WRITES: &str = "(echo x > /data/x) 2>/dev/null && echo writable || echo read-only";

#[test]
fn a_request_tightens_and_loosens_what_policy_names() {
    let s = Session::new();
    let image = s.publish("tools", TOOLS);
    let base = format!("allowed_registries: ['{}'], trust: {{keys: [cosign.pub]}}", s.host());
    configure(&s, &format!("{base}, overrides: {{profile: [permissive]}}"), &image, "");
    s.ready();
    let policy = &s.status()["policy"];
    assert_eq!((&policy["profile"], &policy["profile_from"]), (&"secure".into(), &"the default".into()));
    let run = |options: &str| s.sh(&format!("$ADDONFS run {options} tools/sh --script '{WRITES}'"));
    assert_eq!(run("").ok(), "read-only\n");
    assert_eq!(run("--profile permissive").ok(), "writable\n");
    let refused = run("--profile disabled");
    assert_eq!(refused.code, 125);
    assert!(
        refused.err.contains("policy.denied") && refused.err.contains("overrides.profile"),
        "{refused:?}"
    );
    // 1A-25: an unknown profile, in every place
    assert!(s.sh("$M/tools/sh/run -p strict --script true").refused().contains("E_POLICY"));
    let by_variable = s.sh(&format!("FLWD_PROFILE=disabled $ADDONFS run tools/sh --script '{WRITES}'"));
    assert!(by_variable.refused().contains("policy.denied"));
    let plan = s.sh("$M/tools/sh/plan -p permissive --script true").ok();
    assert!(plan.contains("policy.override.allowed") && plan.contains("throw-away"), "{plan}");
    let plan =
        s.sh("exec 3<>$M/tools/sh/ctl; echo 'plan -p permissive {\"script\": \"true\"}' >&3; cat <&3").ok();
    assert!(plan.contains("throw-away"), "{plan}");
    let started = "mkdir $M/tools/sh/runs/n; echo '{\"script\": \"true\"}' > $M/tools/sh/runs/n/args.json; \
                   echo 'start profile=disabled' > $M/tools/sh/runs/n/ctl; cat $M/tools/sh/runs/n/last_error";
    assert!(s.sh(started).out.contains("policy.denied"));
    let records = s.sh("echo start profile=permissive > $M/tools/sh/runs/n/ctl; $M/tools/sh/runs/n/wait; \
                        cat $M/tools/sh/runs/n/record.json");
    assert!(records.ok().contains("\"profile_asked\": \"permissive\""));
}

#[test]
fn an_image_that_is_let_pass_does_not_run_under_secure() {
    let s = Session::new();
    s.build(
        "tools",
        &TOOLS.replace("command: [/addon/data.txt]", "command: [/bin/echo]\n    profile: secure"),
    );
    let image = s.reference("tools", &s.push("tools"));
    configure(&s, "profile: permissive, trust: {keys: [cosign.pub]}", &image, "");
    s.ready();
    assert_eq!(s.sh(&format!("$M/tools/sh/run --script '{WRITES}'")).ok(), "writable\n");
    for refused in ["$M/tools/sh/run -p secure --script true", "$M/tools/locked/run"] {
        let refused = s.sh(refused).refused();
        assert!(refused.contains("image.registry.not.allowed"), "{refused}");
    }
    assert!(s.sh("FLWD_PROFILE=secure $ADDONFS run tools/sh --script true").refused().contains("secure"));
    s.umount();
    // the same by the variable of who mounts: now the image is not shown at all
    let mounted = s.sh(
        "FLWD_PROFILE=secure $ADDONFS mount --config addonfs.yaml --state-dir state --cache-dir cache $M; \
         $ADDONFS status",
    );
    assert!(mounted.err.contains("image.registry.not.allowed"), "{mounted:?}");
    assert!(mounted.out.contains("profile   secure (by $FLWD_PROFILE)"), "{mounted:?}");
}

#[test]
fn disabled_needs_its_own_word_at_the_start() {
    let s = Session::new();
    s.build("tools", TOOLS);
    let image = s.reference("tools", &s.push("tools"));
    configure(&s, "profile: disabled", &image, "");
    let refused = s.mount().refused();
    assert!(refused.contains("E_POLICY") && refused.contains("--allow-disabled-policy"), "{refused}");
    assert!(s.mounts().is_empty() && s.processes().is_empty());
    let mounted = s.mount_with(&["--strict", "--allow-disabled-policy"]);
    assert_eq!(mounted.code, 0, "{mounted:?}");
    assert!(mounted.err.contains("images are not checked"), "{mounted:?}");
    let policy = &s.status()["policy"];
    assert_eq!((&policy["profile"], &policy["disabled_allowed"]), (&"disabled".into(), &true.into()));
    assert_eq!(s.source("tools")["verification"]["state"], "not_checked");
    s.umount();
    configure(&s, "profile: strict", &image, "");
    assert!(s.mount().refused().starts_with("addonfs: E_POLICY"));
}

#[test]
fn a_policy_file_of_flowd_stands_beside() {
    let s = Session::new();
    let image = s.publish("tools", TOOLS);
    s.write(
        "flwd.policy.yaml",
        format!(
            "verify_signatures: required\nallowed_registries: ['{}']\nceilings: {{cpu: 500m}}\n",
            s.host()
        ),
    );
    configure(&s, "trust: {keys: [cosign.pub]}", &image, "");
    let mount = "$ADDONFS mount --strict --config addonfs.yaml --state-dir state --cache-dir cache $M";
    assert!(s.sh(mount).refused().contains("image.registry.not.allowed"));
    s.umount();
    let mounted = s.sh(&format!("FLWD_POLICY_FILE=flwd.policy.yaml {mount}"));
    assert_eq!((mounted.code, mounted.err.as_str()), (0, ""));
    assert_eq!(s.json("tools/sh/job.json")["limits"]["cpu_millis"], 500);
    let file = s.path("flwd.policy.yaml");
    assert_eq!(s.status()["policy"]["policy_file"], file.to_str().unwrap());
    s.umount();
    configure(&s, "trust: {keys: [cosign.pub]}, ceilings: {cpu: 1}", &image, "");
    let refused = s.sh(&format!("FLWD_POLICY_FILE=flwd.policy.yaml {mount}")).refused();
    assert!(refused.contains("E_CONFIG") && refused.contains("ceilings"), "{refused}");
}
