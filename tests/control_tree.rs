//! The control tree through the kernel, with the tools people use: what they read, what they write, what is refused.
#![allow(clippy::unwrap_used)]

#[path = "common/control.rs"]
mod control;
#[path = "common/mounted.rs"]
mod mounted;

use std::time::Instant;

use addonfs::policy::digest::Digest;
use control::{GROUP, shown};
use mounted::{Mount, text};

#[test]
fn reading_tools_see_whole_files() {
    let mount = Mount::new();
    assert_eq!(mount.sh("ls"), "tools\n");
    assert_eq!(mount.sh("ls -a"), ".\n..\n.addonfs\ntools\n");
    assert_eq!(mount.sh("cat tools/postgres/manifest.yaml"), control::MANIFEST);
    assert_eq!(mount.sh("jq -r .id tools/postgres/backup/job.json"), "tools/postgres/backup\n");
    assert_eq!(mount.sh("jq -c .sources .addonfs/status.json"), "1\n");
    assert_eq!(mount.sh("stat -c '%s %A' .addonfs/status.json"), "14 -r--r--r--\n");
    assert_eq!(mount.sh("wc -c < .addonfs/version"), format!("{}\n", env!("CARGO_PKG_VERSION").len() + 1));
    assert_eq!(mount.sh("stat -f -c '%b %f %c' ."), "0 0 0\n");
    let target = format!("../../.addonfs/images/{}/rootfs\n", Digest::of(b"image").dashed());
    assert_eq!(mount.sh("readlink tools/postgres/rootfs"), target);
}

#[test]
fn walkers_of_the_whole_mount_end_quickly_copy_everything_and_start_nothing() {
    let mut mount = Mount::new();
    mount.nest_images();
    mount.sh("mkdir tools/postgres/backup/runs/r");
    let copy = tempfile::tempdir().unwrap();
    let copies = copy.path().display();
    let began = Instant::now();
    assert!(mount.sh("find . -ls").lines().count() > 40);
    assert_eq!(
        mount.sh("grep -rl postgres-tools tools | sort | head -1"),
        "tools/postgres/backup/job.json\n"
    );
    mount.sh("grep -r x . > /dev/null; [ $? -le 1 ]");
    mount.sh(&format!("rsync -a ./ {copies}/rsync/"));
    mount.sh(&format!("mkdir {copies}/tar && tar c . | tar x -C {copies}/tar"));
    mount.sh(&format!("cp -a . {copies}/cp"));
    mount.sh("du -s . > /dev/null");
    assert!(began.elapsed().as_secs() < 20);
    for tool in ["rsync", "tar", "cp"] {
        let check = format!(
            "cd {copies}/{tool} && cmp tools/postgres/manifest.yaml $M/tools/postgres/manifest.yaml &&
             cmp tools/postgres/backup/job.json $M/tools/postgres/backup/job.json &&
             cmp .addonfs/status.json $M/.addonfs/status.json && test -L tools/postgres/rootfs &&
             test ! -e .addonfs/images/there"
        );
        mount.sh(&check);
    }
    assert_eq!(
        mount.sh(&format!("stat -c %i {copies}/tar/tools/postgres/*/{{run,plan}} | sort -u | wc -l")),
        "1\n",
        "hard links of one inode"
    );
    assert_eq!(mount.sh("cat tools/postgres/*/runs/*/state"), "created\n", "nothing was started");
}

#[test]
fn a_shell_talks_with_a_ctl_on_one_descriptor() {
    let mount = Mount::new();
    let talk = r#"
        exec 3<> .addonfs/ctl
        echo ping >&3 && read -r a <&3 && echo "$a"
        echo ping >&3 && read -r a <&3 && echo "$a"
        echo bogus >&3 || { read -r a <&3; echo "refused: $a"; }
        echo ping >&3; cat <&3
    "#;
    for shell in ["bash", "dash"] {
        let output = mount.shell(shell, talk);
        assert_eq!(
            text(&output.stdout),
            "pong\npong\nrefused: there is no command `bogus`\npong\n",
            "{shell}: {}",
            text(&output.stderr)
        );
    }
    assert!(mount.refused("echo bogus > .addonfs/ctl").contains("Invalid argument"));
    assert_eq!(mount.sh("cat .addonfs/last_error"), "there is no command `bogus`\n");
}

#[test]
fn a_reply_of_several_lines_is_read_line_by_line() {
    let mount = Mount::new();
    for shell in ["bash", "dash"] {
        let script = r#"cd tools/postgres/backup; exec 3<> ctl; echo help >&3
            whole=$(cat <&3); echo help >&3
            first=; n=0; while read -r line <&3; do n=$((n + 1)); done
            [ "$n" = "$(echo "$whole" | wc -l)" ] && [ "$n" -gt 1 ] && echo same"#;
        let output = mount.shell(shell, script);
        assert_eq!(text(&output.stdout), "same\n", "{shell}: {}", text(&output.stderr));
    }
}

#[test]
fn every_way_of_writing_a_command_works() {
    let mount = Mount::new();
    let python = r#"python3 -c '
f = open(".addonfs/ctl", "r+")
f.write("ping\n"); f.flush(); print(f.readline(), end="")
f.write("ping\n"); f.flush(); print(f.readline(), end="")
'"#;
    assert_eq!(mount.sh(python), "pong\npong\n");
    mount.sh("printf ping > .addonfs/ctl");
    mount.sh("echo ping >> .addonfs/ctl");
    mount.sh("echo ping | tee .addonfs/ctl > /dev/null");
    mount.sh("echo ping > $TMPDIR/cmd.$$ && cp $TMPDIR/cmd.$$ .addonfs/ctl; rm $TMPDIR/cmd.$$"
        .replace("$TMPDIR", "/tmp")
        .as_str());
    mount.sh("echo ping | dd of=.addonfs/ctl conv=fsync,notrunc status=none");
    mount.sh("truncate -s 0 .addonfs/ctl; touch .addonfs/ctl");
    let asked = mount.stage.script.asked.lock().unwrap();
    assert_eq!(asked.len(), 7);
    assert!(asked.iter().all(|(_, line, _)| line == "ping"));
}

#[test]
fn a_page_is_too_long_for_a_command() {
    let mount = Mount::new();
    let refused = mount.refused("head -c 5000 /dev/zero | tr '\\0' ' ' > .addonfs/ctl");
    assert!(refused.contains("Argument list too long"), "{refused}");
    assert!(mount.stage.script.asked.lock().unwrap().is_empty());
    assert!(mount.sh("cat .addonfs/last_error").contains("4096"));
}

#[test]
fn what_is_not_offered_says_so() {
    let mount = Mount::new();
    mount.sh("mkdir tools/postgres/backup/runs/r");
    for script in [
        "touch new",
        "echo x > tools/new",
        "mkdir tools/new",
        "rm tools/postgres/manifest.yaml",
        "mv tools/postgres/manifest.yaml tools/postgres/m",
        "ln tools/postgres/manifest.yaml tools/postgres/m",
        "ln -s a tools/postgres/m",
        "rmdir tools",
        "chmod 600 .addonfs/ctl",
        "mkfifo tools/pipe",
        "touch tools/postgres/backup/runs/r/new",
        "sed -i s/a/b/ tools/postgres/backup/runs/r/args.json",
        "mkdir tools/postgres/backup/runs/r/sub",
    ] {
        let refused = mount.refused(script);
        assert!(refused.contains("not permitted"), "{script}: {refused}");
    }
    assert!(mount.refused("echo x > .addonfs/status.json").contains("Permission denied"));
    assert!(mount.refused("mkdir tools/postgres/backup/runs/Bad_Name").contains("Invalid argument"));
    assert!(mount.sh("cat .addonfs/last_error").contains("a-z 0-9"));
    let ioctl = "python3 -c 'import fcntl,errno\ntry: fcntl.ioctl(open(\".addonfs/version\"), 0x5401, bytes(64))\nexcept OSError as e: print(errno.errorcode[e.errno])'";
    assert_eq!(mount.sh(ioctl), "ENOTTY\n");
}

#[test]
fn modes_decide_who_may_run_what() {
    let mount = Mount::new();
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let member = &format!("setpriv --reuid 65534 --regid 65534 --groups {GROUP}");
    mount.sh(&format!("{nobody} cat tools/postgres/backup/job.json > /dev/null"));
    for script in ["mkdir tools/postgres/backup/runs/no", "bash -c 'echo help > tools/postgres/backup/ctl'"] {
        assert!(mount.refused(&format!("{nobody} {script}")).contains("Permission denied"), "{script}");
        mount.sh(&format!("{member} {}", script.replace("/no", "/yes")));
    }
    assert_eq!(
        mount
            .sh("stat -c '%a %u %g' tools/postgres/backup/runs/yes tools/postgres/backup/runs/yes/args.json"),
        format!("750 65534 {GROUP}\n640 65534 {GROUP}\n")
    );
    mount.sh("mkdir tools/postgres/backup/runs/root");
    assert!(
        mount.refused(&format!("{nobody} ls tools/postgres/backup/runs/root")).contains("Permission denied")
    );
    mount.sh(&format!("{member} cat tools/postgres/backup/runs/root/state > /dev/null"));
    assert!(
        mount
            .refused(&format!("{member} bash -c 'echo > tools/postgres/backup/runs/root/args.json'"))
            .contains("Permission")
    );
}

#[test]
fn the_program_runs_under_each_of_its_names() {
    let mount = Mount::new();
    assert_eq!(mount.sh("tools/postgres/backup/run a b"), "tools/postgres/backup/run a b\n");
    assert_eq!(mount.sh("cd tools/postgres/backup; ./plan"), "./plan \n");
    mount.sh("mkdir tools/postgres/backup/runs/r");
    assert_eq!(mount.sh("PATH=$PWD/tools/postgres/backup/runs/r:$PATH; follow | sed s,.*/,,"), "follow \n");
    assert_eq!(mount.sh("stat -c %i tools/postgres/*/{run,plan} tools/postgres/backup/runs/r/{wait,follow} | sort -u | wc -l"), "1\n");
}

#[test]
fn a_flip_is_seen_at_once_and_the_nested_mount_survives_every_change() {
    let mut mount = Mount::new();
    let images = mount.nest_images();
    let rootfs = mount.path().join("tools/postgres/rootfs");
    for flip in 0_u32..200 {
        let digest = Digest::of(&flip.to_ne_bytes());
        mount.stage.script.change(|state| state.shown = vec![shown("pg", "tools/postgres", Some(digest))]);
        mount.stage.tree.changed();
        let seen = std::fs::read_link(&rootfs).unwrap();
        assert!(seen.to_string_lossy().contains(&digest.hex()), "flip {flip} shows {}", seen.display());
    }
    mount.sh("ls -l tools/postgres > /dev/null; test -d tools/postgres/backup");
    mount.stage.script.change(|state| {
        state.shown.clear();
        state.sources.clear();
    });
    mount.stage.jobs.uninstall("pg");
    mount.stage.tree.changed();
    mount.sh("test ! -e tools && test ! -e tools/postgres/backup && test ! -e .addonfs/sources/pg");
    assert_eq!(mount.sh("ls -A"), ".addonfs\n");
    assert!(mount.refused("cat tools/postgres/manifest.yaml").contains("No such file"));
    mount.stage.script.change(|state| state.shown = vec![shown("b", "other", None)]);
    mount.stage.tree.changed();
    assert_eq!(mount.sh("ls other"), "addon.json\nmanifest.yaml\n");
    assert_eq!(std::fs::read_to_string(images.join("there")).unwrap(), "yes\n");
}
