//! The units of docs/systemd against the program that they start, and against what a mount cannot live with.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

const ADDONFS: &str = env!("CARGO_BIN_EXE_addonfs");
/// Where the units say that the program is; `scripts/install` puts its prefix there.
const INSTALLED: &str = "/usr/local/bin/addonfs";
const UNITS: [&str; 3] = ["addonfs.service", "addonfs@.service", "user/addonfs.service"];

/// Each gives the service a mount namespace of its own (systemd.exec(5)): what is mounted in there, nobody else sees.
const OWN_MOUNTS: [&str; 7] =
    ["Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "TemporaryFileSystem", "Root"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/systemd")
}

/// The settings of a unit, sections left out: a name with its value. A `\` at its end continues a line.
fn settings(unit: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(folder().join(unit)).unwrap().replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
    lines.map(|line| line.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap()).collect()
}

fn all<'a>(settings: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    settings.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
}

#[test]
fn units_start_the_program_with_words_that_it_knows() {
    let help = Command::new(ADDONFS).args(["mount", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for unit in UNITS {
        let settings = settings(unit);
        let start = all(&settings, "ExecStart");
        let words: Vec<&str> = start[0].split_whitespace().collect();
        assert_eq!((start.len(), &words[..2]), (1, &[INSTALLED, "mount"][..]), "{unit}");
        let options: Vec<&str> = words.into_iter().filter(|word| word.starts_with('-')).collect();
        assert!(options.contains(&"--foreground"), "{unit}: systemd looks after the holder");
        for option in options {
            let known = help.split_whitespace().any(|word| word.trim_end_matches(',') == option);
            assert!(known, "{unit}: `addonfs mount` has no {option}");
        }
    }
}

#[test]
fn units_let_mounts_and_runs_live() {
    for unit in UNITS {
        let settings = settings(unit);
        for (name, _) in &settings {
            assert!(!OWN_MOUNTS.iter().any(|start| name.starts_with(start)), "{unit}: {name}");
        }
        // the daemon is not the process that systemd starts, and one that the kernel kills is started again by that
        assert_eq!(all(&settings, "Type"), ["notify"], "{unit}");
        assert_eq!(all(&settings, "NotifyAccess"), ["all"], "{unit}");
        assert_eq!(all(&settings, "KillMode"), ["mixed"], "{unit}");
        assert_eq!(all(&settings, "OOMPolicy"), ["continue"], "{unit}");
        // nothing of the code speaks to the descriptor store
        assert!(all(&settings, "FileDescriptorStoreMax").is_empty(), "{unit}");
    }
    let user = settings("user/addonfs.service");
    assert!(all(&user, "NoNewPrivileges").is_empty(), "fusermount3 is a setuid program");
}

/// systemd's own judgement, with the program where it is now.
#[test]
fn systemd_finds_nothing_wrong() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("no systemd-analyze here: not looked at");
        return;
    }
    for unit in UNITS {
        let dir = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(folder().join(unit)).unwrap();
        let file = dir.path().join(unit.rsplit('/').next().unwrap().replace("@.", "@one."));
        std::fs::write(&file, text.replace(INSTALLED, ADDONFS)).unwrap();
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=no"]).args(unit.starts_with("user/").then_some("--user")).arg(&file);
        let output = verify.env("XDG_RUNTIME_DIR", dir.path()).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && words.is_empty(), "{unit}: {words}");
    }
}

/// A package's tree: units that start what was installed beside them.
#[test]
fn install_puts_units_where_systemd_looks() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install"))
        .arg("/usr")
        .env("DESTDIR", dir.path())
        .env("ADDONFS_BINARY", ADDONFS)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (unit, folder) in UNITS.into_iter().zip(["system", "system", "user"]) {
        let name = unit.rsplit('/').next().unwrap();
        let text =
            std::fs::read_to_string(dir.path().join("usr/lib/systemd").join(folder).join(name)).unwrap();
        assert!(text.contains("ExecStart=/usr/bin/addonfs mount"), "{unit}: {text}");
        assert!(!text.contains("/usr/local"), "{unit}: {text}");
    }
    for file in ["bin/addonfs", "share/man/man1/addonfs-mount.1", "share/bash-completion/completions/addonfs"]
    {
        assert!(dir.path().join("usr").join(file).exists(), "{file}");
    }
}
