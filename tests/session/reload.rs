//! The configuration takes effect without a new mount, as a whole or not at all.

use crate::common::session::{Session, TOOLS, eventually};

const LONG: &str = "echo begun; sleep 600";

fn named(name: &str) -> String {
    TOOLS.replace("test-tools", name)
}

/// Another revision of an add-on: its digest is another one.
fn revise(s: &Session, name: &str, word: &str) -> String {
    s.write("rootfs/etc/revision", word);
    s.publish(name, &named(name).replace("1.0.0", "1.0.1"))
}

#[test]
fn sources_come_and_go_and_change() {
    let s = Session::new();
    let (one, two) = (s.publish("one", &named("one")), s.publish("two", &named("two")));
    s.configure("", &[("one", &one, "mountPath: a"), ("two", &two, "mountPath: b")]);
    s.ready();
    let daemon = s.daemon();
    let before = s.json(".addonfs/sources/two/status.json");

    // one moves, three comes, two stays as it is
    let three = s.publish("three", &named("three"));
    let sources = [
        ("one", one.as_str(), "mountPath: c"),
        ("two", &two, "mountPath: b"),
        ("three", &three, "mountPath: a"),
    ];
    s.configure("", &sources);
    let done = s.addonfs(["reload", "--strict"]);
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", s.log());
    assert_eq!(s.sh("cd $M && ls").ok(), "a\nb\nc\n");
    assert_eq!(s.json("a/addon.json")["name"], "three");
    assert_eq!(s.json("c/addon.json")["name"], "one");
    assert_eq!(s.sh("$M/c/sh/run --script 'echo moved'").ok(), "moved\n");
    assert_eq!(s.source("two"), before, "what did not change is not touched");
    assert_eq!(s.source("one")["generation"], 2);
    let events = s.cat(".addonfs/events.jsonl");
    let loaded = events.lines().find(|line| line.contains("configuration.loaded")).unwrap();
    for part in [r#""added":["three"]"#, r#""changed":["one"]"#, r#""removed":[]"#, r#""lost":[]"#] {
        assert!(loaded.contains(part), "{part}: {loaded}");
    }

    // one goes, and two and three change places
    s.configure("", &[("two", &two, "mountPath: a"), ("three", &three, "mountPath: b")]);
    s.addonfs(["reload", "--strict"]).ok();
    assert_eq!(s.json("a/addon.json")["name"], "two");
    assert_eq!(s.json("b/addon.json")["name"], "three");
    s.sh("test ! -e $M/c && test ! -e $M/.addonfs/sources/one").ok();
    assert_eq!(
        s.sh("$M/a/sh/run --script 'echo two'; $M/b/sh/run --script 'echo three'").ok(),
        "two\nthree\n"
    );
    assert_eq!(s.daemon(), daemon);
}

/// DESIGN §2: the symlink flips at once, and whoever has the old tree open keeps it, runs too.
#[test]
fn a_new_revision_takes_the_place_of_the_old_one() {
    let s = Session::new();
    let old = s.publish("tools", TOOLS);
    s.configure("", &[("tools", &old, "mountPath: tools")]);
    s.ready();
    s.sh("mkdir $M/tools/sh/runs/long; echo '{\"script\": \"sleep 8; cat /etc/revision || echo none\"}' \
          > $M/tools/sh/runs/long/args.json; echo start > $M/tools/sh/runs/long/ctl")
        .ok();
    eventually("the run runs", || s.cat("tools/sh/runs/long/state").contains("running").then_some(()));
    // From the first look on there is one of the two trees at every moment.
    let looking = s.start(
        "exec 3<$M/tools/rootfs/etc/os-release; touch looking
         while [ ! -e enough ]; do readlink -e $M/tools/rootfs || echo GONE; $M/tools/sh/plan --script x >&2 || echo GONE; done \
         2>/dev/null | sort | uniq -c >looked; cat <&3 >kept",
    );
    eventually("somebody looks", || s.path("looking").exists().then_some(()));
    let new = revise(&s, "tools", "new\n");
    s.configure("", &[("tools", &new, "mountPath: tools")]);
    s.addonfs(["reload", "--strict"]).ok();
    assert_eq!(s.cat("tools/rootfs/etc/revision"), "new\n");
    assert_eq!(s.sh("$M/tools/sh/run --script 'cat /etc/revision'").ok(), "new\n");
    let status = s.source("tools");
    assert_eq!((&status["generation"], &status["observed_generation"]), (&2.into(), &2.into()));
    // A daemon that takes over knows the tree that was replaced, for those who are in it.
    let daemon = s.daemon();
    s.sh(&format!("kill -9 {daemon}")).ok();
    eventually("another daemon answers", || (s.daemon() != daemon).then_some(()));
    s.write("enough", "");
    looking.finish();
    let looked = std::fs::read_to_string(s.path("looked")).unwrap();
    assert!(!looked.contains("GONE") && looked.lines().count() == 2, "{looked}");
    assert_eq!(std::fs::read(s.path("kept")).unwrap(), std::fs::read("/etc/os-release").unwrap());
    s.sh("$M/tools/sh/runs/long/wait").ok();
    assert_eq!(s.cat("tools/sh/runs/long/stdout"), "none\n");
}

#[test]
fn a_broken_configuration_changes_nothing_and_says_why() {
    let s = Session::new().with_tools();
    let good = std::fs::read_to_string(s.path("addonfs.yaml")).unwrap();
    let status = s.source("tools");
    for (bad, word) in [
        (good.replace("mountPath", "mountPth"), "did you mean mountPath?"),
        (good.replace("cosign.pub", "gone.pub"), "gone.pub"),
        (good.replace("profile: secure", "profile: disabled"), "E_POLICY"),
        ("policy: [".to_owned(), "line 1"),
    ] {
        s.write("addonfs.yaml", &bad);
        let refused = s.addonfs(["reload"]);
        assert_eq!(refused.code, 1);
        assert!(refused.err.contains(word) && refused.err.contains("stays as it was"), "{word}: {refused:?}");
        assert!(s.cat(".addonfs/last_error").contains(word));
        assert!(s.status()["configuration"]["error"].as_str().unwrap().contains(word));
    }
    assert_eq!(s.source("tools"), status);
    assert_eq!(s.status()["configuration"]["generation"], 1);
    let events = s.cat(".addonfs/events.jsonl");
    assert_eq!(events.lines().filter(|line| line.contains("configuration.refused")).count(), 4);
    // A daemon that takes over does not read what is broken.
    let daemon = s.daemon();
    s.sh(&format!("kill -9 {daemon}")).ok();
    eventually("another daemon answers", || (s.daemon() != daemon).then_some(()));
    assert_eq!(s.sh("$M/tools/sh/run --script 'echo fine'").ok(), "fine\n");
    // What only a new mount can apply is said.
    s.write("addonfs.yaml", good.replace("deadline: 3s", "deadline: 4s"));
    let done = s.addonfs(["reload"]);
    assert!(done.code == 0 && done.err.contains("read take effect at the next mount"), "{done:?}");
}

#[test]
fn a_successor_goes_on_with_what_was_loaded_last() {
    let s = Session::new();
    let (one, two) = (s.publish("one", &named("one")), s.publish("two", &named("two")));
    s.configure("", &[("one", &one, "mountPath: one")]);
    s.ready();
    s.configure("", &[("two", &two, "mountPath: two")]);
    // as a service manager does it: to the process that it knows, which is the holder
    let daemon = s.daemon();
    let holder = s.sh(&format!("ps -o ppid= -p {daemon}")).ok();
    s.sh(&format!("kill -HUP {holder}")).ok();
    eventually("the new source is ready", || {
        s.status()["sources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|x| x["name"] == "two" && x["ready"] == true)
            .then_some(())
    });
    s.write("addonfs.yaml", "half edi");
    std::fs::remove_file(s.path("cosign.pub")).unwrap();
    s.sh(&format!("kill -9 {daemon}")).ok();
    eventually("another daemon answers", || (s.daemon() != daemon).then_some(()));
    assert_eq!(s.sh("cd $M && ls; $M/two/sh/run --script 'echo two'").ok(), "two\ntwo\n");
}

/// Trust that is taken away: the add-on is gone at the next reload; runs finish or are ended, as policy says.
#[test]
fn removed_trust_takes_the_add_on_away() {
    for (word, consequence) in [("finish", "the run goes on to its end"), ("kill", "the run is canceled")] {
        let s = Session::new();
        let (tools, other) = (s.publish("tools", TOOLS), s.publish("other", &named("other")));
        s.addonfs(["keygen", "--output", "new"]).ok();
        let host = s.host();
        let digest = other.rsplit('@').next().unwrap();
        s.addonfs(["sign", "--key", "new.key", &format!("{host}/org/other@{digest}")]).ok();
        let write = |keys: &str| {
            let sources = [("tools", &tools), ("other", &other)]
                .map(|(name, image)| format!("  - {{name: {name}, type: oci, image: '{image}'}}\n"));
            s.write(
                "addonfs.yaml",
                format!(
                    "cache: {{keep_free: 0}}\njobs: {{max_running_per_job: 1, limits: {{grace: 1s}}}}\n\
                     policy: {{allowed_registries: ['{host}'], trust: {{keys: [{keys}]}}, on_untrusted: {word}}}\n\
                     sources:\n{}",
                    sources.concat()
                ),
            );
        };
        write("cosign.pub");
        s.ready();
        let start = |name: &str, script: &str| {
            s.sh(&format!(
                "cd $M/tools/sh/runs && mkdir {name} && echo '{{\"script\": \"{script}\"}}' > {name}/args.json && \
                 echo start > {name}/ctl && readlink -f $M/tools/rootfs"
            ))
            .ok()
        };
        let rootfs = start("long", LONG);
        eventually("the run runs", || s.cat("tools/sh/runs/long/state").contains("running").then_some(()));
        let ended = |name: &str, state: &str| {
            let events = s.cat(".addonfs/events.jsonl");
            let name = format!("\"name\":\"{name}\"");
            let words = ["\"event\":\"run.finish\"", &name, &format!("\"state\":\"{state}\"")];
            events.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        };
        start("queued", "true");

        // `other` is signed by both: the new signature is fetched, and it stays where it is
        write("new.pub");
        let done = s.addonfs(["reload"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.err.contains("tools: image.signature.required"), "{done:?}");
        s.sh("test ! -e $M/tools && test -e $M/other/rootfs/etc/os-release").ok();
        assert_eq!(s.source("other")["verification"]["by"]["name"], "new.pub");
        let status = s.source("tools");
        assert_eq!((&status["phase"], &status["shown"]), (&"refused".into(), &false.into()));
        assert!(
            s.cat(".addonfs/sources/tools/conditions").contains("SourceVerified False VerificationError")
        );
        assert!(s.cat(".addonfs/discovery-errors").contains("tools: image.signature.required"));
        let events = s.cat(".addonfs/events.jsonl");
        assert!(events.contains(r#""lost":["tools"]"#), "{events}");

        eventually("the queued run is canceled", || ended("queued", "canceled"));
        let told = s.cat(".addonfs/events.jsonl");
        assert!(told.contains(consequence), "{told}");
        if word == "finish" {
            assert_eq!(s.status()["runs"]["running"], 1);
            s.sh(&format!("test -e {rootfs}")).ok();
            // it has no files any more; who knows it can end it
            s.addonfs(["cancel", "tools/sh/long"]).ok();
        }
        eventually("the run has ended", || ended("long", "canceled"));
        // Nobody finds the tree by its digest either, as soon as no run needs it.
        eventually("the tree has no name any more", || {
            (s.sh(&format!("test -e {rootfs}")).code != 0).then_some(())
        });

        write("new.pub, cosign.pub");
        s.addonfs(["reload", "--strict"]).ok();
        assert_eq!(s.sh("$M/tools/sh/run --script 'echo again'").ok(), "again\n");
    }
}
