//! The control tree by its plain methods: numbers, names, frozen content, commands and refusals, without a kernel.
#![allow(clippy::unwrap_used)]

#[path = "common/control.rs"]
mod control;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use addonfs::fs::control::{Attr, Change, ControlTree, Kind, Request, TTL_STATIC, Written};
use addonfs::fs::errno::errno;
use addonfs::fs::error::FsError;
use addonfs::policy::digest::Digest;
use control::{GROUP, PROGRAM, Stage, shown, source_files};
use nix::libc;

const ROOT: u64 = 1;

fn ask(uid: u32) -> Request {
    Request { uid, gid: uid, pid: 77, unique: 8, resent: false }
}

fn at(tree: &ControlTree, path: &str) -> Result<Attr, FsError> {
    let mut attr = tree.getattr(ROOT)?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        attr = tree.lookup(attr.ino, OsStr::new(name))?;
    }
    Ok(attr)
}

fn ino(tree: &ControlTree, path: &str) -> u64 {
    at(tree, path).unwrap_or_else(|error| panic!("{path}: {error}")).ino
}

fn cat(tree: &ControlTree, path: &str) -> String {
    let ino = ino(tree, path);
    let opened = tree.open(ino, libc::O_RDONLY).unwrap();
    let bytes = tree.read(ino, opened.handle, 0, 1 << 20).unwrap();
    tree.release(ino, opened.handle);
    String::from_utf8(bytes).unwrap()
}

fn names(tree: &ControlTree, path: &str) -> Vec<String> {
    let ino = ino(tree, path);
    let handle = tree.opendir(ino).unwrap();
    let listing = tree.readdir(ino, handle, 0).unwrap();
    let names = listing.rest().map(|(_, entry)| entry.name.to_string_lossy().into_owned());
    let names = names.filter(|name| name != "." && name != "..").collect();
    tree.releasedir(handle);
    names
}

fn put(tree: &ControlTree, request: &Request, path: &str, data: &[u8]) -> Result<String, FsError> {
    let ino = ino(tree, path);
    let opened = tree.open(ino, libc::O_RDWR).unwrap();
    let written = tree.write(request, ino, opened.handle, 0, data, libc::O_RDWR);
    let reply = tree.read(ino, opened.handle, data.len() as u64, 65536);
    tree.release(ino, opened.handle);
    match written {
        Ok(Written::Now(taken)) => assert_eq!(taken as usize, data.len()),
        Ok(Written::Later(_)) => panic!("a command never waits"),
        Err(refused) => return Err(refused),
    }
    reply.map(|reply| String::from_utf8(reply).unwrap())
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn make_run(stage: &Stage, job: &str, name: &str) -> String {
    let runs = format!("tools/postgres/{job}/runs");
    stage.tree.mkdir(&ask(1000), ino(&stage.tree, &runs), OsStr::new(name)).unwrap();
    format!("{runs}/{name}")
}

fn walk(tree: &ControlTree, at: &str, seen: &mut Vec<(String, Attr)>) {
    for name in names(tree, at) {
        let path = format!("{at}/{name}");
        let attr = self::at(tree, &path).unwrap();
        if attr.kind == Kind::Dir {
            walk(tree, &path, seen);
        }
        seen.push((path, attr));
    }
}

#[test]
fn the_tree_has_the_names_of_the_design() {
    let stage = Stage::new();
    let tree = &stage.tree;
    assert_eq!(names(tree, ""), [".addonfs", "tools"]);
    assert_eq!(
        names(tree, "tools/postgres"),
        ["addon", "addon.json", "backup", "echo", "files", "manifest.yaml", "nap", "rootfs"]
    );
    assert_eq!(
        names(tree, "tools/postgres/backup"),
        ["argspec.json", "ctl", "job.json", "plan", "run", "runs"]
    );
    assert_eq!(
        names(tree, ".addonfs"),
        [
            "ctl",
            "discovery-errors",
            "events.jsonl",
            "jobs.json",
            "jobs.jsonl",
            "last_error",
            "metrics",
            "runs",
            "sources",
            "status.json",
            "version"
        ]
    );
    assert_eq!(
        names(tree, ".addonfs/sources/pg"),
        ["conditions", "ctl", "events.jsonl", "last_error", "spec.yaml", "status.json"]
    );
    let rootfs = ino(tree, "tools/postgres/rootfs");
    let target = format!("../../.addonfs/images/{}/rootfs", Digest::of(b"image").dashed());
    assert_eq!(tree.readlink(rootfs).unwrap(), target.as_bytes());
    assert_eq!(at(tree, "tools/postgres/rootfs").unwrap().size, target.len() as u64);
    assert_eq!(tree.readlink(ino(tree, "tools/postgres/addon")).unwrap(), b"rootfs/addon");
}

#[test]
fn images_answers_to_its_name_with_a_fixed_number_and_is_not_listed() {
    let stage = Stage::new();
    let images = at(&stage.tree, ".addonfs/images").unwrap();
    assert_eq!((images.ino, images.kind, images.ttl), (3, Kind::Dir, TTL_STATIC));
    assert!(!names(&stage.tree, ".addonfs").contains(&"images".to_owned()));
    for fixed in [1, 2, 3] {
        assert_eq!(stage.tree.getattr(fixed).unwrap().ttl, TTL_STATIC);
    }
}

#[test]
fn every_number_resolves_again_after_a_takeover() {
    let stage = Stage::new();
    let run = make_run(&stage, "files", "first");
    put(&stage.tree, &ask(1000), &format!("{run}/ctl"), b"start\n").unwrap();
    wait_for("the run", || cat(&stage.tree, &format!("{run}/state")) == "succeeded\n");
    let mut before = Vec::new();
    walk(&stage.tree, "", &mut before);
    assert!(before.iter().any(|(path, _)| path.ends_with("first/out/sub/file")), "{before:?}");
    let successor = stage.successor();
    for (path, attr) in before {
        let again = successor.getattr(attr.ino).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(
            (again.ino, again.kind, again.perm, again.size),
            (attr.ino, attr.kind, attr.perm, attr.size),
            "{path}"
        );
    }
}

#[test]
fn an_old_handle_renders_its_file_again_and_an_old_reply_is_stale() {
    let stage = Stage::new();
    let (status, ctl) = (ino(&stage.tree, ".addonfs/status.json"), ino(&stage.tree, ".addonfs/ctl"));
    let file = stage.tree.open(status, libc::O_RDONLY).unwrap().handle;
    let command = stage.tree.open(ctl, libc::O_RDWR).unwrap().handle;
    assert_eq!(stage.tree.read(ctl, command, 0, 10).unwrap(), b"");
    let successor = stage.successor();
    assert_eq!(successor.read(status, file, 2, 7).unwrap(), b"sources");
    assert!(matches!(successor.read(ctl, command, 0, 10), Err(FsError::Stale)));
    successor.write(&ask(0), ctl, command, 99, b"ping\n", libc::O_RDWR).unwrap();
    assert_eq!(successor.read(ctl, command, 104, 10).unwrap(), b"pong\n");
}

#[test]
fn sizes_are_exact_and_files_end_with_a_newline() {
    let stage = Stage::new();
    make_run(&stage, "backup", "r");
    let mut all = Vec::new();
    walk(&stage.tree, "", &mut all);
    for (path, attr) in all.iter().filter(|(_, attr)| attr.kind == Kind::File) {
        let text = cat(&stage.tree, path);
        assert_eq!(attr.size, text.len() as u64, "{path}");
        assert!(text.is_empty() || text.ends_with('\n'), "{path}: {text:?}");
    }
}

#[test]
fn content_is_frozen_while_it_is_read_and_new_at_the_next_open() {
    let stage = Stage::new();
    let status = ino(&stage.tree, ".addonfs/status.json");
    let first = stage.tree.open(status, libc::O_RDONLY).unwrap().handle;
    stage.script.change(|state| state.status = "{\"sources\":1000}\n".to_owned());
    assert_eq!(stage.tree.getattr(status).unwrap().size, 14);
    assert_eq!(stage.tree.read(status, first, 0, 100).unwrap(), b"{\"sources\":1}\n");
    assert_eq!(stage.tree.getattr(status).unwrap().size, 17, "read to the end: thawed");
    assert_eq!(cat(&stage.tree, ".addonfs/status.json"), "{\"sources\":1000}\n");
    assert_eq!(
        stage.tree.read(status, first, 0, 100).unwrap(),
        b"{\"sources\":1000}\n",
        "a rewind looks again"
    );
}

#[test]
fn a_ctl_answers_on_its_own_handle_and_refuses_pages_and_several_lines() {
    let stage = Stage::new();
    let tree = &stage.tree;
    assert_eq!(put(tree, &ask(7), ".addonfs/sources/pg/ctl", b"ping").unwrap(), "pong\n");
    let asked = stage.script.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].1.as_str(), asked[0].2), ("ping", 7));

    let ctl = ino(tree, ".addonfs/ctl");
    let (one, two) =
        (tree.open(ctl, libc::O_RDWR).unwrap().handle, tree.open(ctl, libc::O_RDWR).unwrap().handle);
    let refused = tree.write(&ask(0), ctl, one, 0, b"bogus\n", libc::O_RDWR).err().unwrap();
    assert_eq!(errno(&refused), libc::EINVAL);
    assert_eq!(tree.read(ctl, two, 0, 100).unwrap(), b"");
    assert_eq!(tree.read(ctl, one, 6, 100).unwrap(), b"there is no command `bogus`\n");
    assert_eq!(cat(tree, ".addonfs/last_error"), "there is no command `bogus`\n");

    let page = vec![b' '; 4096];
    for path in [".addonfs/ctl", "tools/postgres/backup/ctl"] {
        assert_eq!(errno(&put(tree, &ask(0), path, &page).unwrap_err()), libc::E2BIG);
    }
    assert_eq!(errno(&put(tree, &ask(0), ".addonfs/ctl", b"ping\nping\n").unwrap_err()), libc::EINVAL);
    assert_eq!(stage.script.asked.lock().unwrap().len(), 2, "neither of two was done");
}

#[test]
fn a_change_names_what_the_kernel_must_forget_and_never_the_way_to_the_images() {
    let stage = Stage::new();
    let forgotten: Arc<std::sync::Mutex<Vec<(u64, String)>>> = Arc::default();
    let log = Arc::clone(&forgotten);
    stage.tree.on_forget_name(Box::new(move |dir, name| {
        log.lock().unwrap().push((dir, name.to_string_lossy().into_owned()));
    }));
    let (tools, postgres) = (ino(&stage.tree, "tools"), ino(&stage.tree, "tools/postgres"));

    let flipped = Digest::of(b"next image");
    stage.script.change(|state| state.shown = vec![shown("pg", "tools/postgres", Some(flipped))]);
    stage.tree.changed();
    assert_eq!(*forgotten.lock().unwrap(), [(postgres, "rootfs".to_owned())]);
    let target = stage.tree.readlink(ino(&stage.tree, "tools/postgres/rootfs")).unwrap();
    assert!(String::from_utf8(target).unwrap().contains(&flipped.hex()));

    forgotten.lock().unwrap().clear();
    stage.script.change(|state| {
        state.shown = vec![shown("other", "tools/other", None)];
        state.sources = vec![source_files("other")];
    });
    stage.jobs.uninstall("pg");
    stage.tree.changed();
    let mut gone = forgotten.lock().unwrap().clone();
    gone.sort();
    let mut expected = [(tools, "postgres".to_owned()), (4, "pg".to_owned())];
    expected.sort();
    assert_eq!(gone, expected, "the top of what vanished, and nothing fixed");
    assert_eq!(names(&stage.tree, "tools"), ["other"]);
    assert_eq!(names(&stage.tree, "tools/other"), ["addon.json", "manifest.yaml"]);
    assert!(matches!(stage.tree.getattr(postgres), Err(FsError::Gone)));
}

#[test]
fn a_file_that_was_read_between_the_facts_and_the_snapshot_is_not_kept() {
    let stage = Stage::new();
    let manifest = "tools/postgres/manifest.yaml";
    let mut next = (*shown("pg", "tools/postgres", None)).clone();
    next.manifest = Arc::from(*b"next\n");
    stage.script.change(|state| state.shown = vec![Arc::new(next)]);
    assert_eq!(cat(&stage.tree, manifest), control::MANIFEST);
    stage.tree.changed();
    assert_eq!(cat(&stage.tree, manifest), "next\n");
}

#[test]
fn owners_and_modes_say_who_may_run_what() {
    let stage = Stage::new();
    let run = make_run(&stage, "backup", "mine");
    let dir = at(&stage.tree, &run).unwrap();
    assert_eq!((dir.perm, dir.uid, dir.gid), (0o750, 1000, GROUP));
    let runs = at(&stage.tree, "tools/postgres/backup/runs").unwrap();
    assert_eq!((runs.perm, runs.uid, runs.gid), (0o775, 0, GROUP));
    assert_eq!(at(&stage.tree, "tools/postgres/backup/ctl").unwrap().perm, 0o660);
    let (run_program, wait) = (
        at(&stage.tree, "tools/postgres/backup/run").unwrap(),
        at(&stage.tree, &format!("{run}/wait")).unwrap(),
    );
    assert_eq!(run_program.ino, wait.ino);
    assert_eq!((wait.perm, wait.size, wait.nlink), (0o555, PROGRAM.len() as u64, 2 * 4 + 2));
    assert_eq!(cat(&stage.tree, &format!("{run}/wait")).as_bytes(), PROGRAM);
}

#[test]
fn modes_are_those_of_the_documentation() {
    let stage = Stage::new();
    let run = make_run(&stage, "backup", "r");
    let docs = include_str!("../docs/semantics.md");
    let rows = |heading: &str| -> Vec<(String, String)> {
        let table = docs.split(heading).nth(1).expect("the section is there");
        let rows = table.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
        rows.take_while(|line| line.starts_with('|'))
            .map(|line| {
                let mut cells = line.split('|').map(str::trim).skip(1);
                (cells.next().unwrap().to_owned(), cells.next().unwrap().to_owned())
            })
            .collect()
    };
    let in_run = rows("## A run directory");
    assert_eq!(in_run.len(), 13);
    for (name, mode) in in_run {
        let path = format!("{run}/{}", name.trim_matches('`'));
        assert_eq!(format!("{:04o}", at(&stage.tree, &path).unwrap().perm), mode, "{path}");
    }
    let mut checked = 0;
    for (paths, mode) in rows("## The tree") {
        for path in paths.split(", ").map(|path| path.trim_matches('`')) {
            let path = path
                .replace("<mount path>", "tools/postgres")
                .replace("<job>", "tools/postgres/backup")
                .replace("<name>", "pg");
            if u16::from_str_radix(&mode, 8).is_ok() && !path.starts_with("M/") && !path.contains(' ') {
                assert_eq!(format!("{:04o}", at(&stage.tree, &path).unwrap().perm), mode, "{path}");
                checked += 1;
            }
        }
    }
    assert!(checked > 15, "{checked}");
}

#[test]
fn attributes_change_only_where_tools_need_it() {
    let stage = Stage::new();
    let run = make_run(&stage, "backup", "r");
    let chmod = Change { mode: Some(0o600), ..Change::default() };
    let cut = Change { size: Some(0), ..Change::default() };
    let chown = Change { uid: Some(5), ..Change::default() };
    let set = |path: &str, change: &Change| stage.tree.setattr(ino(&stage.tree, path), change).map(|_| ());
    let args = format!("{run}/args.json");
    let (ctl, state) = (format!("{run}/ctl"), format!("{run}/state"));
    for (path, change) in [(&args, &chmod), (&args, &cut), (&ctl, &cut), (&ctl, &Change::default())] {
        set(path, change).unwrap();
    }
    for (path, change) in [(&args, &chown), (&ctl, &chmod), (&state, &cut), (&state, &chmod)] {
        assert_eq!(errno(&set(path, change).unwrap_err()), libc::EPERM, "{path} {change:?}");
    }
    assert_eq!(errno(&stage.tree.open(ino(&stage.tree, &state), libc::O_WRONLY).unwrap_err()), libc::EACCES);
}

#[test]
fn rm_of_a_run_that_lives_is_refused_and_of_a_finished_one_works() {
    let stage = Stage::new();
    let run = make_run(&stage, "nap", "long");
    put(&stage.tree, &ask(1000), &format!("{run}/ctl"), b"start\n").unwrap();
    let (runs, dir) = (ino(&stage.tree, "tools/postgres/nap/runs"), ino(&stage.tree, &run));
    let request = ask(1000);
    let name = OsStr::new("long");
    assert_eq!(errno(&stage.tree.rmdir(&request, runs, name).unwrap_err()), libc::EBUSY);
    assert_eq!(errno(&stage.tree.unlink(dir, OsStr::new("state")).unwrap_err()), libc::EBUSY);
    put(&stage.tree, &request, &format!("{run}/ctl"), b"cancel\n").unwrap();
    wait_for("the end", || cat(&stage.tree, &format!("{run}/state")) == "canceled\n");
    stage.tree.unlink(dir, OsStr::new("state")).unwrap();
    assert!(!names(&stage.tree, &run).contains(&"state".to_owned()));
    assert!(matches!(at(&stage.tree, &format!("{run}/state")), Err(FsError::NotFound)));
    stage.tree.rmdir(&request, runs, name).unwrap();
    assert!(matches!(stage.tree.getattr(dir), Err(FsError::Gone)));
    assert!(names(&stage.tree, ".addonfs/runs").is_empty());
}

#[test]
fn requests_that_arrive_twice_are_done_once() {
    let stage = Stage::new();
    let runs = ino(&stage.tree, "tools/postgres/nap/runs");
    let again = Request { resent: true, ..ask(1000) };
    let made = stage.tree.mkdir(&ask(1000), runs, OsStr::new("once")).unwrap();
    assert_eq!(stage.tree.mkdir(&again, runs, OsStr::new("once")).unwrap().ino, made.ino);
    assert!(matches!(stage.tree.mkdir(&ask(1000), runs, OsStr::new("once")), Err(FsError::Exists)));
    let other = Request { uid: 1001, ..again };
    assert!(matches!(stage.tree.mkdir(&other, runs, OsStr::new("once")), Err(FsError::Exists)));

    let ctl = "tools/postgres/nap/runs/once/ctl";
    put(&stage.tree, &ask(1000), ctl, b"start\n").unwrap();
    put(&stage.tree, &again, ctl, b"start\n").unwrap();
    let second = Request { unique: 10, ..ask(1000) };
    assert_eq!(errno(&put(&stage.tree, &second, ctl, b"start\n").unwrap_err()), libc::EBUSY);
    assert!(cat(&stage.tree, "tools/postgres/nap/runs/once/last_error").contains("start refused"));
    put(&stage.tree, &second, ctl, b"cancel\n").unwrap();

    let refused = put(&stage.tree, &again, "tools/postgres/nap/ctl", b"run {}\n").unwrap_err();
    assert_eq!(errno(&refused), libc::ESTALE);
    assert_eq!(names(&stage.tree, "tools/postgres/nap/runs"), ["once"]);

    let args = ino(&stage.tree, &format!("{}/args.json", make_run(&stage, "nap", "more")));
    let append = |request: &Request| {
        let opened = stage.tree.open(args, libc::O_WRONLY | libc::O_APPEND).unwrap();
        stage.tree.write(request, args, opened.handle, 0, b"{}", libc::O_WRONLY | libc::O_APPEND).map(|_| ())
    };
    append(&ask(1000)).unwrap();
    assert_eq!(errno(&append(&again).unwrap_err()), libc::ESTALE, "they would be there twice");
    stage.tree.rmdir(&ask(1000), runs, OsStr::new("more")).unwrap();
    stage.tree.rmdir(&again, runs, OsStr::new("more")).unwrap();
    assert_eq!(errno(&stage.tree.rmdir(&ask(1000), runs, OsStr::new("more")).unwrap_err()), libc::ENOENT);
}
