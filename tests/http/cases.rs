//! The table of requests and what they come to, by the ids under which other implementations know them.

use serde_json::{Value, json};

use super::api::{Api, events};
use crate::common::session::{Session, TOOLS, eventually};

const ADDON: &str = "name: addon\nversion: 1.2.3\nentrypoints:\n  - id: build\n    command: [/bin/echo]\n    argspec:\n      \
                     type: object\n      properties: {image-tag: {type: string}}\n";

/// A daemon, and what the cases need to know of it.
struct World {
    s: Session,
    api: Api,
    /// A signed add-on: by tag, and by tag and digest.
    tag: String,
    pinned: String,
}

impl World {
    fn digest(&self) -> &str {
        self.pinned.split_once('@').unwrap().1
    }

    fn source(&self, more: Value) -> Value {
        let mut body = json!({"type": "oci", "ref": self.tag, "trusted": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    fn run(&self, script: &str) -> Value {
        json!({"job_id": "tools/sh", "args": {"script": script}})
    }

    #[track_caller]
    fn add(&self, more: Value) -> super::api::Answer {
        self.api.post("/sources", &self.source(more))
    }

    fn events_of(&self, run: &str) -> Vec<(u64, String, Value)> {
        events(&self.api.stream(&format!("/runs/{run}/events"), &[], |_| false).text)
    }
}

type Case = (&'static str, fn(&World));

/// In order; later ones find what earlier ones made.
const SECURE: &[Case] = &[
    ("HA-01", |w| {
        let answer = w.api.post("/sources", &json!({"type": "oci", "ref": "ghcr.io/example/addon:1.0.0"}));
        assert_eq!(answer.refusal(), (400, "source.trust.required".into()));
    }),
    ("HA-02", |w| {
        let answer = w.add(json!({"ref": "ghcr.io/example/addon:1.0.0"}));
        assert_eq!(answer.refusal(), (422, "image.registry.not.allowed".into()));
    }),
    ("HA-07", |w| {
        let first = w.add(json!({})).is(201);
        assert_eq!((&first["name"], &first["digest"]), (&"addon".into(), &w.digest().into()));
        assert_eq!(
            (&first["ref"], &first["resolved_ref"]),
            (&w.tag.as_str().into(), &w.pinned.as_str().into())
        );
        assert_eq!(first["metadata"]["manifest"]["version"], "1.2.3");
        assert_eq!(first["metadata"]["image_trust"]["signature_verified"], true);
        let second = w.add(json!({})).is(200);
        assert_eq!((&first["created_at"], &second["name"]), (&second["created_at"], &"addon".into()));
    }),
    ("HA-08", |w| {
        for (said, stored) in [
            ("", "always"),
            ("on-add", "always"),
            ("always", "always"),
            ("on-run", "ifNotPresent"),
            ("IfNotPresent", "ifNotPresent"),
            ("never", "never"),
        ] {
            let body = json!({"name": "policies", "ref": w.pinned, "pull_policy": said});
            assert!([200, 201].contains(&w.add(body).status), "{said}");
            assert_eq!(w.api.get("/sources/policies").is(200)["pull_policy"], stored, "{said}");
        }
        assert_eq!(w.add(json!({"pull_policy": "sometimes"})).is(400)["title"], "invalid pull policy");
    }),
    ("HA-09", |w| {
        let answer = w.add(json!({"name": "policies", "pull_policy": "on-startup"})).is(200);
        assert_eq!(answer["pull_policy"], "on-startup");
        w.api.delete("/sources/policies").is(204);
    }),
    ("HA-11", |w| {
        let answer = w.api.post("/sources", &json!({"type": "oci", "nam": "x"})).is(400);
        assert_eq!(answer["title"], "invalid request body");
        assert_eq!(w.api.ask("POST", "/sources", &[], Some("{}{}")).is(400)["title"], "invalid request body");
    }),
    ("HA-12", |w| assert_eq!(w.add(json!({"name": "a/b"})).is(400)["title"], "invalid name")),
    ("HA-14", |w| assert_eq!(w.api.delete("/sources/missing").refusal().0, 404)),
    ("HA-15", |w| {
        let answer = w.api.ask("PUT", "/sources", &[], Some("{}"));
        assert_eq!(answer.refusal().0, 405);
        let allow = answer.header("allow").unwrap();
        assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    }),
    ("HA-17", |w| {
        let answer = w.api.get("/jobs");
        assert_eq!(answer.header("x-flowd-discovery-errors"), Some("0"));
        let jobs = answer.is(200)["jobs"].as_array().unwrap().clone();
        let job = jobs.iter().find(|job| job["id"] == "addon/build").unwrap();
        assert_eq!(job["source"], json!({"name": "addon", "type": "oci"}));
        assert_eq!(&w.api.get("/jobs/addon/build").is(200), job);
        assert_eq!(w.api.get("/jobs/addon/none").refusal().0, 404);
    }),
    ("HA-20", |w| {
        let plan =
            w.api.post("/plans", &json!({"job_id": "addon/build", "args": {"image-tag": "latest"}})).is(200);
        assert_eq!(plan["executor_preview"]["container_image"], w.tag.as_str());
        assert_eq!(plan["executor_preview"]["resolved_digest"], w.digest());
        assert_eq!(plan["image_trust"]["verified"], true);
        assert_eq!(plan["provenance"]["source"]["name"], "addon");
        // the older name of the field
        assert_eq!(w.api.post("/plans", &json!({"job": "addon/build"})).is(200)["job_id"], "addon/build");
        let limited = json!({"job_id": "addon/build", "limits": {"cpu": "0.5", "memory": "64Mi"}});
        let plan = w.api.post("/plans", &limited).is(200);
        assert_eq!(plan["executor_preview"]["resources"]["cpu_millis"], 500);
        let wrong = json!({"job_id": "addon/build", "limits": {"cpus": "1"}});
        assert_eq!(w.api.post("/plans", &wrong).is(400)["title"], "invalid request body");
        let both = json!({"job": "addon/build", "job_id": "tools/sh"});
        assert_eq!(w.api.post("/plans", &both).is(400)["title"], "invalid request body");
    }),
    ("HA-23", |w| {
        let answer = w.api.post("/plans", &json!({"job_id": "tools/missing", "args": {"a": 1}}));
        assert_eq!(answer.is(400)["title"], "job does not accept arguments");
    }),
    ("HA-24", |w| {
        assert_eq!(w.api.post("/plans", &json!({"job_id": "no/such"})).is(404)["title"], "job not found");
    }),
    ("HA-26", |w| {
        let answer = w.api.post("/plans", &json!({"job_id": ":sources"}));
        assert_eq!(answer.refusal(), (400, "alias.reserved".into()));
    }),
    ("HA-27", |w| {
        let answer = w.api.post("/runs", &w.run("echo out; echo err >&2; exit 3"));
        let run = answer.is(201);
        let id = run["id"].as_str().unwrap();
        assert_eq!(answer.header("location"), Some(format!("/runs/{id}").as_str()));
        let told = w.events_of(id);
        let kinds: Vec<&str> = told.iter().map(|(_, kind, _)| kind.as_str()).collect();
        assert_eq!(&kinds[..3], ["policy.decision", "run.start", "step.start"]);
        assert_eq!(&kinds[5..], ["step.finish", "run.finish"]);
        assert_eq!(told.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
        for (channel, message) in [("stdout", "out"), ("stderr", "err")] {
            let line = json!({"channel": channel, "message": message});
            assert!(
                told.iter().any(|(_, kind, data)| kind == "step.log" && data["data"] == line),
                "{told:?}"
            );
        }
        assert_eq!(told[5].2["data"]["exit_code"], 3);
        let ended = w.api.get(&format!("/runs/{id}")).is(200);
        assert_eq!((&ended["status"], &ended["state"]), (&"failed".into(), &"failed".into()));
        assert_eq!((&ended["who"]["interface"], &ended["who"]["caller"]), (&"http".into(), &"uid:0".into()));
        // the same run, as files
        let files = w.s.json(&format!(".addonfs/runs/{id}/record.json"));
        assert_eq!((&files["exit_code"], &files["who"]["interface"]), (&3.into(), &"http".into()));
        assert_eq!(w.api.get(&format!("/runs/{id}/logs")).text, "out\n");
        assert_eq!(w.api.get(&format!("/runs/{id}/logs?channel=stderr&offset=1")).text, "rr\n");
        let run = w.api.post("/runs", &w.run("sleep 1; echo late")).is(201);
        let id = run["id"].as_str().unwrap();
        assert_eq!(w.api.get(&format!("/runs/{id}/logs?follow=true")).text, "late\n");
        let refused = w.api.post("/runs", &json!({"job_id": "tools/sh", "args": {"number": 0}})).is(422);
        let named: Vec<&str> =
            refused["errors"].as_array().unwrap().iter().map(|e| e["arg"].as_str().unwrap()).collect();
        assert_eq!(named, ["script", "number"]);
    }),
    ("HA-29", |w| {
        let key = [("Idempotency-Key", "the-same-key-as-ever-1")];
        let body = w.run("echo once").to_string();
        let first = w.api.ask("POST", "/runs", &key, Some(&body));
        let again = w.api.ask("POST", "/runs", &key, Some(&format!(" {body}\n")));
        assert_eq!(first.header("idempotent-replay"), None);
        assert_eq!(again.header("idempotent-replay"), Some("true"));
        let id = first.is(201)["id"].clone();
        assert_eq!(again.is(201)["id"], id);
        w.events_of(id.as_str().unwrap());
        let all = w.s.cat(".addonfs/events.jsonl");
        let started =
            all.lines().filter(|line| line.contains("\"run.start\"") && line.contains(id.as_str().unwrap()));
        assert_eq!(started.count(), 1);
        // a daemon that takes over knows the key
        let daemon = w.s.daemon();
        w.s.sh(&format!("kill -9 {daemon}")).ok();
        eventually("another daemon answers", || (w.s.daemon() != daemon).then_some(()));
        eventually("and listens", || w.s.status()["http"]["socket"].is_string().then_some(()));
        let after = w.api.ask("POST", "/runs", &key, Some(&body));
        assert_eq!((after.header("idempotent-replay"), &after.is(201)["id"]), (Some("true"), &id));
    }),
    ("HA-30", |w| {
        let key = [("Idempotency-Key", "the-same-key-as-ever-1")];
        let answer = w.api.ask("POST", "/runs", &key, Some(&w.run("echo another").to_string()));
        assert_eq!(answer.refusal().0, 409);
        assert!(answer.json()["type"].as_str().unwrap().ends_with("/idempotency-key-conflict"));
        let body = w.run("echo hashed").to_string();
        let hash = [("Idempotency-SHA256", "00")];
        assert_eq!(w.api.ask("POST", "/runs", &hash, Some(&body)).refusal().0, 409);
        let short = [("Idempotency-Key", "short")];
        assert_eq!(w.api.ask("POST", "/runs", &short, Some(&body)).refusal().0, 400);
    }),
    ("HA-33", |w| {
        let key = [("Idempotency-Key", "the-same-key-as-ever-1")];
        let other = Api::tcp(&w.s, Some("token-of-all"));
        let answer = other.ask("POST", "/runs", &key, Some(&w.run("echo once").to_string()));
        assert_eq!((answer.status, answer.header("idempotent-replay")), (201, None));
        assert_eq!(answer.json()["who"]["caller"], "token:all");
    }),
    ("HA-36", |w| {
        let run = w
            .api
            .post("/runs", &w.run("trap 'exit 9' TERM; echo begun; while :; do sleep 0.1; done"))
            .is(201);
        let id = run["id"].as_str().unwrap();
        w.api.stream(&format!("/runs/{id}/events"), &[], |text| text.contains("begun"));
        w.api.post(&format!("/runs/{id}:cancel"), &json!({})).is(202);
        let kinds: Vec<String> = w.events_of(id).into_iter().map(|(_, kind, _)| kind).collect();
        assert!(kinds.iter().any(|kind| kind == "run.canceled"), "{kinds:?}");
        assert_eq!(w.api.post(&format!("/runs/{id}:cancel"), &json!({})).is(200)["status"], "canceled");
        assert_eq!(w.api.post("/runs/r0-nothing:cancel", &json!({})).refusal().0, 404);
        assert_eq!(w.api.post(&format!("/runs/{id}:explode"), &json!({})).refusal().0, 404);
        assert_eq!(w.api.post(&format!("/runs/{id}"), &json!({})).refusal().0, 405);
    }),
    ("HA-38", |w| {
        for _ in 0..3 {
            w.api.post("/runs", &json!({"job_id": "addon/build"})).is(201);
        }
        let page = |n| w.api.get(&format!("/runs?job_id=addon/build&per_page=2&page={n}")).is(200);
        let count = |page: &Value| page["runs"].as_array().unwrap().len();
        let (one, two) = (page(1), page(2));
        assert_eq!((count(&one), count(&two), &one["total"]), (2, 1, &3.into()));
        assert!(one["runs"][0]["number"].as_u64() > one["runs"][1]["number"].as_u64());
        for bad in ["page=0", "per_page=0", "per_page=201", "page=x", "pages=1"] {
            assert_eq!(w.api.get(&format!("/runs?{bad}")).refusal().0, 400, "{bad}");
        }
    }),
    ("HA-39", |w| {
        let run = w.api.post("/runs", &w.run("seq 3")).is(201);
        let id = run["id"].as_str().unwrap();
        w.s.sh(&format!("$M/.addonfs/runs/{id}/wait")).ok();
        // The oldest events of a run that nobody followed yet were evicted.
        let folder = w.s.sh(&format!("find state -type d -name {id}")).ok();
        let line =
            json!({"sequence": 100, "timestamp": "", "event": "step.log", "data": {}, "at": [0, 0, 3]});
        w.s.write(&format!("{}/events.jsonl", folder.trim()), format!("{line}\n"));
        let path = format!("/runs/{id}/events");
        let answer = w.api.ask("GET", &path, &[("Last-Event-ID", "7")], None);
        assert_eq!(answer.refusal(), (410, "cursor-expired".into()));
        assert!(answer.json()["type"].as_str().unwrap().ends_with("/cursor-expired"));
        let rest = events(&w.api.stream(&format!("{path}?last_event_id=100"), &[], |_| false).text);
        assert_eq!(rest.first().map(|(id, kind, _)| (*id, kind.as_str())), Some((101, "step.log")));
        let last = rest.last().unwrap().0.to_string();
        w.api.ask("GET", &path, &[("Last-Event-ID", &last)], None).is(204);
        assert_eq!(w.api.ask("GET", &path, &[("Last-Event-ID", "x")], None).refusal().0, 400);
        // the daemon's own, whose oldest are gone
        assert_eq!(w.api.ask("GET", "/events", &[("Last-Event-ID", "5")], None).refusal().0, 410);
        w.s.sh(&format!("rmdir $M/tools/sh/runs/{id}")).ok();
        assert_eq!(w.api.ask("GET", &path, &[("Last-Event-ID", &last)], None).refusal().0, 410);
    }),
    ("HA-41", |w| {
        let answer = w.api.stream("/runs/r99999-00000000/events", &[], |text| text.contains(":connected"));
        assert_eq!((answer.status, answer.text.as_str()), (200, "retry: 2000\n\n:connected\n\n"));
    }),
    ("HA-42", |w| {
        let run = w.api.post("/runs", &w.run("true")).is(201);
        let answer = w.api.get(&format!("/runs/{}/events.ndjson", run["id"].as_str().unwrap()));
        assert_eq!(answer.refusal(), (404, "extension-unsupported".into()));
        assert_eq!(answer.json()["title"], "extension unsupported");
    }),
    ("HA-47", |w| {
        let reader = Api::tcp(&w.s, Some("token-of-jobs:read"));
        let refused = reader.get("/runs");
        assert_eq!((refused.refusal().0, refused.header("www-authenticate")), (403, None));
        for token in [None, Some("token-of-nobody")] {
            let stranger = Api::tcp(&w.s, token);
            let refused = stranger.get("/runs");
            assert_eq!(refused.refusal().0, 401);
            assert!(refused.header("www-authenticate").unwrap().starts_with("Bearer"));
            stranger.get("/healthz").is(204);
        }
        // A token counts on the socket, too: it is how root gives up rights.
        let headers = [("Authorization", "Bearer token-of-jobs:read")];
        assert_eq!(w.api.ask("GET", "/runs", &headers, None).refusal().0, 403);
    }),
    ("HA-48", |w| {
        let map = [
            ("GET", "/jobs", "jobs:read"),
            ("POST", "/plans", "jobs:read"),
            ("POST", "/runs", "runs:write"),
            ("GET", "/runs/{id}/events", "runs:read+events:read"),
            ("POST", "/sources", "sources:write"),
            ("DELETE", "/sources/{name}", "sources:write"),
        ];
        let all = w.api.operations();
        for (method, path, scopes) in map {
            let told = all.iter().find(|(m, p, _)| m == method && p == path).unwrap();
            assert_eq!(told.2.join("+"), scopes, "{method} {path}");
        }
        for (method, path, scopes) in all.iter().filter(|(.., scopes)| !scopes.is_empty()) {
            let path = path.replace("{id}", "none").replace("{name}", "none");
            let ask = |token: &str| {
                let api = Api::tcp(&w.s, Some(token));
                let enough = |text: &str| !text.is_empty();
                match method.as_str() {
                    "GET" => api.stream(&path, &[], enough).status,
                    _ => api.ask(method, &path, &[], Some("{}")).status,
                }
            };
            for scope in scopes {
                assert_eq!(ask(&format!("token-without-{scope}")), 403, "{method} {path} without {scope}");
            }
            let status = ask(&format!("token-of-{}", scopes.join("+")));
            assert!(![401, 403].contains(&status), "{method} {path} with {scopes:?}: {status}");
        }
    }),
];

#[test]
fn cases_under_secure() {
    let s = Session::new();
    let tools = s.publish("tools", TOOLS);
    let pinned = s.publish("addon", ADDON);
    tokens(&s);
    s.configure(
        "http: {listen: '127.0.0.1:0', tokens: tokens.yaml}",
        &[("tools", &tools, "mountPath: tools")],
    );
    // An events journal whose first thousand events are gone.
    s.write(
        "state/events.jsonl",
        "{\"seq\":1000,\"time\":\"\",\"event\":\"source.ready\",\"source\":\"tools\"}\n",
    );
    s.ready();
    let tag = pinned.split_once('@').unwrap().0.to_owned();
    let world = World { api: Api::of(&s), s, tag, pinned };
    for (id, case) in SECURE {
        eprintln!("{id}");
        case(&world);
    }
    // What the cases do not ask for.
    let w = &world;
    w.api.get("/sources").is(200);
    w.api.get("/api/v1/sources/tools").is(200);
    w.api.post("/sources/addon:reload", &json!({})).is(200);
    w.api.get("/health/storage").is(200);
    let metrics = w.api.get("/metrics").text;
    let dashboard = include_str!("../../docs/grafana.json");
    let words = dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let shown: std::collections::BTreeSet<&str> = words.filter(|word| word.starts_with("addonfs_")).collect();
    assert!(shown.len() > 6, "{shown:?}");
    for name in shown {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "the dashboard shows {name}: {metrics}");
    }
    w.api.get("/openapi.json").is(200);
    w.api.get("/healthz").is(204);
    w.api.get("/api/v1/healthz").is(204);
    assert_eq!(w.api.get("/nothing").refusal().0, 404);
    for bad in ["/events?since=1", "/runs/%ff", "/runs/x/events?a=%ff"] {
        assert_eq!(w.api.get(bad).refusal().0, 400, "{bad}");
    }
    w.api.stream("/events", &[], |text| text.contains(":connected"));
    let told: std::collections::BTreeSet<_> =
        w.api.operations().into_iter().map(|(m, p, _)| (m, p)).collect();
    assert_eq!(*w.api.asked.borrow(), told, "asked (left) and told of (right)");
}

/// Tokens for each scope, for all, and for all but each.
fn tokens(s: &Session) {
    let scopes = ["jobs:read", "runs:read", "runs:write", "events:read", "sources:read", "sources:write"];
    let mut lines = vec![("token-of-all".to_owned(), "all".to_owned(), scopes.to_vec())];
    for scope in scopes {
        lines.push((format!("token-of-{scope}"), format!("of-{scope}"), vec![scope]));
        let others = scopes.into_iter().filter(|other| *other != scope).collect();
        lines.push((format!("token-without-{scope}"), format!("without-{scope}"), others));
    }
    lines.push((
        "token-of-runs:read+events:read".into(),
        "follower".into(),
        vec!["runs:read", "events:read"],
    ));
    let text: String = lines
        .iter()
        .map(|(token, name, scopes)| {
            let hash = addonfs::policy::digest::Digest::of(token.as_bytes()).hex();
            format!("  - {{name: '{name}', sha256: {hash}, scopes: ['{}']}}\n", scopes.join("', '"))
        })
        .collect();
    let path = s.write("tokens.yaml", format!("tokens:\n{text}"));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode).unwrap();
}

const PERMISSIVE: &[Case] = &[
    ("HA-04", |w| {
        let source = w.add(json!({})).is(201);
        let trust = &source["metadata"]["image_trust"];
        assert_eq!(
            (&trust["verify_mode"], &trust["signature_verified"]),
            (&"permissive".into(), &false.into())
        );
        assert_eq!(source["findings"][0]["code"], "image.signature.permissive");
    }),
    ("HA-05", |w| {
        let answer = w.add(json!({"name": "demanding", "verify_signatures": true}));
        assert_eq!(answer.refusal(), (422, "source-signature-invalid".into()));
        assert_eq!(w.api.get("/sources/demanding").refusal().0, 404);
        // a request may be stricter than the host, and is refused under the code of that
        let answer = w.add(json!({"name": "strict", "profile": "secure"}));
        assert_eq!(answer.refusal(), (422, "image.registry.not.allowed".into()));
        assert_eq!(w.add(json!({"profile": "disabled"})).refusal(), (422, "policy.denied".into()));
        assert_eq!(w.add(json!({"profile": "strict"})).refusal(), (422, "E_POLICY".into()));
    }),
    ("HA-18", |w| {
        let answer = w.api.get("/jobs");
        assert_eq!((answer.status, answer.header("x-flowd-discovery-errors")), (200, Some("1")));
        let refused = w.add(json!({"name": "broken", "ref": format!("{}/org/broken:v1", w.s.host())}));
        assert_eq!(refused.refusal(), (400, "E_ADDON_MANIFEST".into()));
        let gone = w.add(json!({"name": "gone", "ref": format!("{}/org/gone:v1", w.s.host())}));
        assert_eq!(gone.refusal(), (400, "E_OCI".into()));
    }),
    ("HA-21", |w| {
        let body =
            json!({"name": "later", "ref": format!("{}/org/later:v1", w.s.host()), "pull_policy": "on-run"});
        assert_eq!(w.add(body).is(201)["pull_policy"], "ifNotPresent");
        eventually("it waits", || {
            (w.api.get("/sources/later").is(200)["status"]["phase"] == "waiting").then_some(())
        });
        let plan = w.api.post("/plans", &json!({"job_id": "later/build"})).is(200);
        let codes: Vec<&str> =
            plan["policy_findings"].as_array().unwrap().iter().map(|f| f["code"].as_str().unwrap()).collect();
        assert!(codes.contains(&"oci.digest.missing"), "{codes:?}");
        // the run that needs them fetches them
        let run = w.api.post("/runs", &json!({"job_id": "later/build"})).is(201);
        let told = w.events_of(run["id"].as_str().unwrap());
        assert_eq!(told.last().unwrap().2["data"]["status"], "completed");
    }),
];

#[test]
fn cases_under_permissive() {
    let s = Session::new();
    s.build("addon", ADDON);
    let pinned = s.reference("addon", &s.push("addon"));
    s.write("rootfs/etc/later", "another lower layer");
    s.build("later", &ADDON.replace("name: addon", "name: later"));
    s.push("later");
    let broken = broken(&s);
    s.write(
        "addonfs.yaml",
        format!(
            "cache: {{keep_free: 0}}\npolicy: {{profile: permissive, trust: {{keys: [cosign.pub]}}}}\nsources:\n  \
             - {{name: broken, type: oci, image: '{broken}'}}\n"
        ),
    );
    s.mount();
    let tag = pinned.split_once('@').unwrap().0.to_owned();
    let world = World { api: Api::of(&s), s, tag, pinned };
    for (id, case) in PERMISSIVE {
        eprintln!("{id}");
        case(&world);
    }
}

/// An image whose manifest is not one.
fn broken(s: &Session) -> String {
    s.write("broken-rootfs/addon/manifest.yaml", "name: broken\nentrypoints: 7\n");
    s.sh("umoci init --layout broken.oci && umoci new --image broken.oci:v1 && \
          umoci insert --rootless --image broken.oci:v1 broken-rootfs/addon /addon")
        .ok();
    s.reference("broken", &s.push("broken"))
}

/// Where the state directory has no room left.
#[test]
fn a_full_disk_starts_nothing() {
    struct Disk(std::path::PathBuf);
    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let s = Session::new();
    let tools = s.publish("tools", TOOLS);
    s.configure("", &[("tools", &tools, "mountPath: tools")]);
    let state = s.path("state");
    std::fs::create_dir(&state).unwrap();
    let status = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs"])
        .arg(&state)
        .status()
        .unwrap();
    assert!(status.success());
    let disk = Disk(state);
    s.ready();
    let api = Api::of(&s);
    let run = json!({"job_id": "tools/sh", "args": {"script": "true"}});
    api.post("/runs", &run).is(201);
    s.sh("head -c 15m /dev/zero >state/fill").out.clear();
    let before = api.get("/runs").is(200)["total"].clone();
    let ha_35 = api.post("/runs", &run);
    assert_eq!(ha_35.refusal(), (429, "storage-quota-exceeded".into()));
    assert_eq!(ha_35.json()["title"], "storage quota exceeded");
    assert_eq!(api.get("/runs").is(200)["total"], before);
    assert_eq!(api.get("/health/storage").is(200)["status"], "degraded");
    std::fs::remove_file(s.path("state/fill")).unwrap();
    api.post("/runs", &run).is(201);
    s.addonfs(["umount", "--cancel"]).ok();
    drop((s, disk));
}
