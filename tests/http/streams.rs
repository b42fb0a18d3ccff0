//! Streams that break off and go on, and the export of events.

use serde_json::{Value, json};

use super::api::{Api, events};
use crate::common::session::{Session, TOOLS, eventually};

fn session(more: &str) -> (Session, Api) {
    let s = Session::new();
    let image = s.publish("tools", TOOLS);
    s.configure(more, &[("tools", &image, "mountPath: tools")]);
    s.ready();
    let api = Api::of(&s);
    (s, api)
}

fn start(api: &Api, script: &str) -> String {
    let body = json!({"job_id": "tools/sh", "args": {"script": script}});
    api.post("/runs", &body).is(201)["id"].as_str().unwrap().to_owned()
}

/// Whoever comes again with the last number misses nothing and sees nothing twice, also when a daemon died meanwhile.
#[test]
fn a_stream_goes_on_where_it_broke_off() {
    let (s, api) = session("http: {export: true}");
    let script = "for i in $(seq 20); do echo out $i; echo err $i >&2; sleep 0.1; done";
    let id = start(&api, script);
    let path = format!("/runs/{id}/events");
    let mut seen: Vec<(u64, String, Value)> = Vec::new();
    let mut killed = false;
    eventually("the stream ends", || {
        let last = seen.last().map_or(0, |(id, ..)| *id).to_string();
        let want = seen.len() + 7;
        let answer =
            api.stream(&path, &[("Last-Event-ID", &last)], |text| events(text).len() >= want - seen.len());
        seen.extend(events(&answer.text));
        if !killed && seen.len() > 14 {
            killed = true;
            let daemon = s.daemon();
            s.sh(&format!("kill -9 {daemon}")).ok();
            eventually("another daemon answers", || (s.daemon() != daemon).then_some(()));
            eventually("and listens", || s.status()["http"]["socket"].is_string().then_some(()));
        }
        (seen.last().unwrap().1 == "run.finish").then_some(())
    });
    assert!(killed);
    let numbers: Vec<u64> = seen.iter().map(|(id, ..)| *id).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    for (channel, word) in [("stdout", "out"), ("stderr", "err")] {
        let said: Vec<String> = seen
            .iter()
            .filter(|(_, kind, data)| kind == "step.log" && data["data"]["channel"] == channel)
            .map(|(.., data)| data["data"]["message"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(said, (1..=20).map(|i| format!("{word} {i}")).collect::<Vec<_>>());
    }
    // the same as lines
    let lines = api.get(&format!("/runs/{id}/events.ndjson")).text;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let streamed: Vec<Value> = seen.into_iter().map(|(.., data)| data).collect();
    assert_eq!(lines, streamed);
    for line in &lines {
        api.valid_as(&json!({"$ref": "#/components/schemas/Event"}), line);
    }
    let rest = api.get(&format!("/runs/{id}/events.ndjson?last_event_id=40")).text;
    assert_eq!(rest.lines().count(), lines.len() - 40);
}

#[test]
fn output_that_is_not_lines_and_a_run_that_was_canceled_in_the_queue() {
    let (_s, api) = session("jobs: {max_running_per_job: 1, limits: {grace: 1s}}");
    let long = start(&api, "printf 'no end'; sleep 600");
    let queued = start(&api, "true");
    api.post(&format!("/runs/{queued}:cancel"), &json!({})).is(202);
    let kinds = |id: &str| -> Vec<String> {
        let text = api.stream(&format!("/runs/{id}/events"), &[], |_| false).text;
        events(&text).into_iter().map(|(_, kind, _)| kind).collect()
    };
    assert_eq!(kinds(&queued), ["policy.decision", "run.canceled", "run.finish"]);
    eventually("it has said something", || {
        (api.get(&format!("/runs/{long}/logs")).text == "no end").then_some(())
    });
    api.post(&format!("/runs/{long}:cancel"), &json!({})).is(202);
    let text = api.stream(&format!("/events?run_id={long}"), &[], |_| false).text;
    let logs: Vec<Value> =
        events(&text).into_iter().filter(|(_, kind, _)| kind == "step.log").map(|(.., data)| data).collect();
    assert_eq!(logs.len(), 1);
    assert_eq!(logs[0]["data"], json!({"channel": "stdout", "message": "no end"}));
}

/// `/events`: the lines of `events.jsonl`, from now on or from a number on.
#[test]
fn all_events_from_a_number_on() {
    let (s, api) = session("");
    let id = start(&api, "true");
    let all = api.stream("/events", &[("Last-Event-ID", "0")], |text| text.contains("run.finish"));
    let lines: Vec<Value> = events(&all.text).into_iter().map(|(.., data)| data).collect();
    let file: Vec<Value> =
        s.cat(".addonfs/events.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, file[..lines.len()]);
    assert!(lines.iter().any(|line| line["event"] == "run.start" && line["run"] == id.as_str()));
    // from now on: nothing of what was
    let later = std::cell::Cell::new(None);
    let live = api.stream("/events", &[], |text| {
        if later.take().is_none() && text.contains(":connected") {
            s.sh("$M/tools/sh/run --script true").ok();
        }
        later.set(Some(()));
        text.contains("run.finish")
    });
    assert!(!live.text.contains(&id) && !live.text.contains("source.ready"), "{}", live.text);
}
