//! What somebody who means no good can do to the interface.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::api::Api;
use crate::common::session::{Session, TOOLS};

/// What comes back for bytes on the socket, until the other side closes.
fn raw(socket: &str, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // A refusal may come before all is written.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn heads_bodies_and_silence_are_bounded() {
    let s = Session::new();
    s.configure("", &[]);
    s.ready();
    let socket = s.status()["http"]["socket"].as_str().unwrap().to_owned();
    let status = |answer: String| answer.split(' ').nth(1).map(str::to_owned).unwrap_or_default();
    let head = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(64 << 10));
    assert_eq!(status(raw(&socket, head.as_bytes())), "431");
    let many = "A: b\r\n".repeat(200);
    let head = format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    assert_eq!(status(raw(&socket, head.as_bytes())), "431");
    let api = Api::of(&s);
    let body = "x".repeat(2 << 20);
    let request = format!("POST /plans HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(status(raw(&socket, request.as_bytes())), "413");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(api.ask("POST", "/runs", &[], Some(&deep)).refusal().0, 400);
    // Half a head holds a connection for a while, and not for ever.
    let begun = Instant::now();
    raw(&socket, b"GET /healthz HTTP/1.1\r\nHo");
    assert!(begun.elapsed() < Duration::from_secs(55), "it was closed by the daemon");
    Api::of(&s).get("/healthz").is(204);
}

/// Who may connect at all is the file system's matter; a group's members may do what they may on the mount.
#[test]
fn the_socket_is_for_its_user_and_the_group() {
    let s = Session::new();
    let image = s.publish("tools", TOOLS);
    let at = s.path("api.sock");
    let other = "setpriv --reuid 65534 --regid 12345 --clear-groups curl -sS -o /dev/null -w '%{http_code}'";
    s.configure("", &[("tools", &image, "mountPath: tools")]);
    s.ready();
    let usual = s.status()["http"]["socket"].as_str().unwrap().to_owned();
    assert_eq!(std::fs::metadata(&usual).unwrap().permissions().mode() & 0o777, 0o600);
    assert_ne!(s.sh(&format!("{other} --unix-socket {usual} http://x/jobs")).code, 0);
    s.umount();
    s.configure(
        &format!("group: '12345'\nhttp: {{socket: {}}}", at.display()),
        &[("tools", &image, "mountPath: tools")],
    );
    s.ready();
    assert_eq!(std::fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o660);
    let ask = |words: &str| s.sh(&format!("{other} --unix-socket api.sock {words}")).ok();
    assert_eq!(ask("http://x/jobs"), "200");
    assert_eq!(ask("http://x/runs -d '{\"job_id\":\"tools/sh\",\"args\":{\"script\":\"true\"}}'"), "201");
    assert_eq!(ask("-X DELETE http://x/sources/tools"), "403");
    let api = Api::of(&s);
    let runs = api.get("/runs").is(200);
    api.stream(&format!("/runs/{}/events", runs["runs"][0]["id"].as_str().unwrap()), &[], |_| false);
    assert_eq!(
        (&runs["runs"][0]["who"]["uid"], &runs["runs"][0]["who"]["caller"]),
        (&65534.into(), &"uid:65534".into())
    );
    s.umount();
    s.configure("http: {socket: none}", &[("tools", &image, "mountPath: tools")]);
    s.ready();
    assert!(s.status()["http"]["socket"].is_null());
    assert!(s.addonfs(["sources", "list"]).refused().contains("socket: none"));
}
