//! Sources that come and go at run time: what stays, what wins, what is refused.

use serde_json::json;

use super::api::Api;
use crate::common::session::{Session, TOOLS, eventually};

fn named(name: &str) -> String {
    TOOLS.replace("test-tools", name)
}

fn body(image: &str, more: serde_json::Value) -> serde_json::Value {
    let mut body = json!({"type": "oci", "ref": image, "trusted": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn tag(image: &str) -> &str {
    image.split_once('@').unwrap().0
}

/// 1A-17, and what was pinned stays pinned.
#[test]
fn an_added_source_survives_everything() {
    let s = Session::new();
    let (one, two) = (s.publish("one", &named("one")), s.publish("two", &named("two")));
    s.configure("", &[("one", &one, "mountPath: one")]);
    s.ready();
    let api = Api::of(&s);
    let generation = s.source("one");
    api.post("/sources", &body(tag(&two), json!({"mountPath": "deep/two"}))).is(201);
    eventually("its tree is there", || (s.source("two")["phase"] == "ready").then_some(()));
    assert_eq!(s.sh("$M/deep/two/sh/run --script 'echo added'").ok(), "added\n");
    assert_eq!(s.source("one"), generation, "nobody else is touched");
    // the tag names something else now
    s.write("rootfs/etc/revision", "new\n");
    let new = s.publish("two", &named("two").replace("1.0.0", "2.0.0"));
    let digest = |image: &str| image.split_once('@').unwrap().1.to_owned();
    let check = |when: &str| {
        eventually(when, || (s.status()["settled"] == true).then_some(()));
        assert_eq!(s.source("two")["digest"], digest(&two).as_str(), "{when}");
        assert_eq!(s.sh("$M/deep/two/sh/run --script 'echo there'").ok(), "there\n", "{when}");
    };
    s.addonfs(["reload", "--strict"]).ok();
    check("after a reload");
    let daemon = s.daemon();
    s.sh(&format!("kill -9 {daemon}")).ok();
    eventually("another daemon answers", || (s.daemon() != daemon).then_some(()));
    check("after a crash");
    s.umount();
    assert!(!s.path("state/http.sock").exists());
    s.ready();
    check("after a new mount");
    let api = Api::of(&s);
    let again = api.post("/sources/two:reload", &json!({})).is(200);
    assert_eq!(again["digest"], digest(&new).as_str());
    eventually("the new tree is there", || {
        (s.sh("cat $M/deep/two/rootfs/etc/revision").out == "new\n").then_some(())
    });
    api.delete("/sources/two").is(204);
    s.sh("test ! -e $M/deep && test -e $M/one/rootfs").ok();
    assert_eq!(api.delete("/sources/two").refusal().0, 404);
    let events = s.cat(".addonfs/events.jsonl");
    for kind in ["source.added", "source.replaced", "source.removed"] {
        assert!(events.contains(kind), "{kind}");
    }
}

#[test]
fn the_configuration_wins() {
    let s = Session::new();
    let (one, two) = (s.publish("one", &named("one")), s.publish("two", &named("two")));
    s.configure("", &[("one", &one, "mountPath: one")]);
    s.ready();
    let api = Api::of(&s);
    let refused = api.post("/sources", &body(tag(&two), json!({"name": "one"})));
    assert_eq!(refused.refusal(), (409, "E_CONFIG".into()));
    assert!(refused.json()["detail"].as_str().unwrap().contains("addonfs.yaml"));
    assert_eq!(api.delete("/sources/one").refusal(), (409, "E_CONFIG".into()));
    let place = api.post("/sources", &body(tag(&two), json!({"mountPath": "one/sh/below"})));
    assert_eq!(place.refusal(), (409, "source.mountpath.conflict".into()));
    assert_eq!(api.get("/sources").is(200)["sources"].as_array().unwrap().len(), 1);
    // A name that the configuration takes later.
    api.post("/sources", &body(tag(&two), json!({}))).is(201);
    s.configure("", &[("one", &one, "mountPath: one"), ("two", &one, "mountPath: elsewhere")]);
    let reloaded = s.addonfs(["reload"]);
    let digest = |image: &str| image.split_once('@').unwrap().1.to_owned();
    for part in ["two", &digest(&one), &digest(&two), "sources remove"] {
        assert!(reloaded.err.contains(part), "{part}: {reloaded:?}");
    }
    assert!(s.cat(".addonfs/discovery-errors").contains("two: E_CONFIG"));
    assert_eq!(api.get("/jobs").header("x-flowd-discovery-errors"), Some("1"));
    assert_eq!(s.json("elsewhere/addon.json")["name"], "one");
    api.delete("/sources/two").is(204);
    assert_eq!(s.cat(".addonfs/discovery-errors"), "");
    assert_eq!(s.json("elsewhere/addon.json")["name"], "one", "only what was added is gone");
}

/// Whose signatures count may be narrowed by who adds a source, and not widened.
#[test]
fn trust_is_narrowed_only() {
    let s = Session::new();
    let image = s.publish("one", &named("one"));
    s.addonfs(["keygen", "--output", "other"]).ok();
    s.configure("", &[]);
    s.write(
        "addonfs.yaml",
        std::fs::read_to_string(s.path("addonfs.yaml"))
            .unwrap()
            .replace("[cosign.pub]", "[cosign.pub, other.pub]"),
    );
    s.ready();
    let api = Api::of(&s);
    let pem = |name: &str| std::fs::read_to_string(s.path(name)).unwrap();
    let add = |trust: serde_json::Value| api.post("/sources", &body(tag(&image), json!({"trust": trust})));
    assert_eq!(add(json!({"keys": ["other.pub"]})).refusal(), (422, "image.signature.required".into()));
    s.addonfs(["keygen", "--output", "third"]).ok();
    assert_eq!(add(json!({"keys": [pem("third.pub")]})).refusal(), (422, "policy.denied".into()));
    add(json!({"keys": [pem("cosign.pub")]})).is(201);
    // Policy takes the key back: the source goes, whatever was said when it was added.
    let text = std::fs::read_to_string(s.path("addonfs.yaml")).unwrap().replace("cosign.pub, ", "");
    s.write("addonfs.yaml", text);
    s.addonfs(["reload"]).ok();
    s.sh("test ! -e $M/one").ok();
    assert!(s.cat(".addonfs/discovery-errors").contains("one: policy.denied"));
}

#[test]
fn a_tag_is_asked_for_at_every_start_where_that_was_said() {
    let s = Session::new();
    let old = s.publish("one", &named("one"));
    s.configure("", &[]);
    s.ready();
    let api = Api::of(&s);
    api.post("/sources", &body(tag(&old), json!({"pull_policy": "on-startup"}))).is(201);
    s.write("rootfs/etc/revision", "new\n");
    let new = s.publish("one", &named("one").replace("1.0.0", "2.0.0"));
    s.umount();
    s.mount().ok();
    eventually("the new one is there", || {
        (s.source("one")["digest"] == new.split_once('@').unwrap().1).then_some(())
    });
}
