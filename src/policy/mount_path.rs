//! Mount paths: where below the mount point a source appears, and which sources get in each other's way.
//!
//! A mount path is relative and clean; `.` is the mount point itself and shows jobs only. No mount path may equal
//! or lie under something that another source makes: a job directory, a fixed name of an add-on's folder, an
//! artifact's symlink. Of two sources that collide the later one in the configuration is not shown. The check is
//! made again whenever a manifest becomes known; a source whose jobs are not known yet claims its folder only.

use super::addon::FIXED_NAMES;
use super::code::{Code, Denied};

/// The daemon's own folder at the top of the mount.
pub const RESERVED: &str = ".addonfs";

/// Longest mount path in bytes; leaves room in PATH_MAX for the mount point, job, run and file.
const MAX_LENGTH: usize = 1024;

/// Longest name in bytes (NAME_MAX).
const MAX_NAME: usize = 255;

/// What a source puts into the tree.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The source's name.
    pub source: &'a str,
    /// Its clean mount path; empty for `.`.
    pub mount_path: &'a str,
    /// What it shows there.
    pub holds: Holds<'a>,
}

/// What a source shows at its mount path.
#[derive(Debug, Clone, Copy)]
pub enum Holds<'a> {
    /// A folder with the fixed names (not at `.`) and these job directories.
    Jobs(&'a [String]),
    /// One symlink: the mount path itself.
    Artifact,
}

/// A clean mount path from the text of the configuration; empty for `.`.
pub fn clean(text: &str) -> Result<String, Denied> {
    let bad = |reason: &str| Denied::new(Code::Config, format!("mountPath {text:?}: {reason}"));
    if text.is_empty() {
        return Err(bad("it is empty: write '.' for the mount point itself"));
    }
    if text.len() > MAX_LENGTH {
        return Err(bad(&format!("it is longer than {MAX_LENGTH} bytes")));
    }
    if text.starts_with('/') {
        return Err(bad("it must be relative to the mount point, without a leading '/'"));
    }
    if text.chars().any(char::is_control) {
        return Err(bad("it holds a control character"));
    }
    let names: Vec<&str> = text.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    if names.contains(&"..") {
        return Err(bad("it must not hold '..'"));
    }
    if names.first() == Some(&RESERVED) {
        return Err(bad(&format!("{RESERVED} is the daemon's own folder")));
    }
    if let Some(long) = names.iter().find(|name| name.len() > MAX_NAME) {
        return Err(bad(&format!("the name {long:?} is longer than {MAX_NAME} bytes")));
    }
    Ok(names.join("/"))
}

/// For each claim, in the order of the configuration, why it must not be shown, if so. A claim that is not shown
/// stands in nobody's way.
pub fn settle(claims: &[Claim<'_>]) -> Vec<Option<Denied>> {
    let mut shown: Vec<&Claim<'_>> = Vec::new();
    let mut verdicts = Vec::with_capacity(claims.len());
    for claim in claims {
        let conflict = shown.iter().find_map(|earlier| Some((*earlier, collision(earlier, claim)?)));
        verdicts.push(conflict.map(|(earlier, path)| {
            Denied::new(
                Code::MountPathConflict,
                format!(
                    "source {} is not shown: {} belongs to source {}, which comes earlier in the configuration; \
                     give one of them another mountPath",
                    claim.source,
                    if path.is_empty() { "the mount point ('.')".to_owned() } else { format!("{path:?}") },
                    earlier.source
                ),
            )
        }));
        if verdicts.last().is_some_and(Option::is_none) {
            shown.push(claim);
        }
    }
    verdicts
}

/// The path that two sources both want, if there is one.
fn collision(a: &Claim<'_>, b: &Claim<'_>) -> Option<String> {
    if a.mount_path == b.mount_path {
        return Some(a.mount_path.to_owned());
    }
    taken(a, b.mount_path).or_else(|| taken(b, a.mount_path))
}

/// The path of `owner`'s making that `path` equals or lies under.
fn taken(owner: &Claim<'_>, path: &str) -> Option<String> {
    let rest = match owner.mount_path {
        "" => path,
        mount_path => path.strip_prefix(mount_path)?.strip_prefix('/')?,
    };
    let first = rest.split('/').next().filter(|name| !name.is_empty())?;
    match owner.holds {
        Holds::Artifact => Some(owner.mount_path.to_owned()),
        Holds::Jobs(jobs) => {
            let fixed = !owner.mount_path.is_empty() && FIXED_NAMES.contains(&first);
            (fixed || jobs.iter().any(|job| job == first)).then(|| match owner.mount_path {
                "" => first.to_owned(),
                mount_path => format!("{mount_path}/{first}"),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans() {
        for (text, path) in [
            (".", ""),
            ("./", ""),
            ("a", "a"),
            ("a//b/./c/", "a/b/c"),
            (".hidden", ".hidden"),
            ("a/.addonfs", "a/.addonfs"),
        ] {
            assert_eq!(clean(text).unwrap(), path, "{text}");
        }
        let long = "x".repeat(256);
        for bad in
            ["", "/", "/a", "..", "a/../b", "../evil", ".addonfs", "./.addonfs/x", "a\0b", "a\nb", &long]
        {
            assert_eq!(clean(bad).unwrap_err().code, Code::Config, "{bad}");
        }
    }

    #[test]
    fn the_later_of_two_loses() {
        let jobs = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let (backup, tools, none) = (jobs(&["backup", "restore"]), jobs(&["tools"]), jobs(&[]));
        let addon = |source, mount_path, jobs| Claim { source, mount_path, holds: Holds::Jobs(jobs) };
        let artifact = |source, mount_path| Claim { source, mount_path, holds: Holds::Artifact };
        for (first, second, path) in [
            (addon("a", "x", &none), addon("b", "x", &none), Some("\"x\"")),
            (addon("a", "", &none), addon("b", "", &none), Some("'.'")),
            (addon("a", "x", &backup), addon("b", "x/backup", &none), Some("\"x/backup\"")),
            (addon("a", "x", &backup), addon("b", "x/backup/deep/er", &none), Some("\"x/backup\"")),
            (addon("a", "x", &backup), addon("b", "x/backups", &none), None),
            (addon("a", "x", &backup), addon("b", "x/other", &none), None),
            (addon("a", "x", &backup), addon("b", "xy", &none), None),
            (addon("a", "x", &none), addon("b", "x/rootfs", &none), Some("\"x/rootfs\"")),
            (addon("a", "x", &none), addon("b", "x/addon.json/y", &none), Some("\"x/addon.json\"")),
            (addon("a", "", &none), addon("b", "rootfs", &none), None),
            (addon("a", "", &tools), addon("b", "tools/pg", &none), Some("\"tools\"")),
            (addon("a", "tools/pg", &none), addon("b", "", &tools), Some("\"tools\"")),
            (addon("a", "x/backup", &none), addon("b", "x", &backup), Some("\"x/backup\"")),
            (artifact("a", "flows"), addon("b", "flows/x", &none), Some("\"flows\"")),
            (addon("a", "flows/x", &none), artifact("b", "flows"), Some("\"flows\"")),
            (artifact("a", "flows"), artifact("b", "flows2"), None),
        ] {
            let verdicts = settle(&[first, second]);
            assert!(verdicts[0].is_none());
            match path {
                None => assert!(verdicts[1].is_none(), "{second:?}"),
                Some(path) => {
                    let denied = verdicts[1].clone().unwrap();
                    assert_eq!(denied.code, Code::MountPathConflict);
                    let message = denied.message;
                    assert!(
                        message.contains(path)
                            && message.contains("source a")
                            && message.contains("source b"),
                        "{message}"
                    );
                }
            }
        }
        // The one that lost stands in nobody's way.
        let three = [addon("a", "x", &none), addon("b", "x", &backup), addon("c", "x/backup", &none)];
        let verdicts = settle(&three);
        assert!(verdicts[1].is_some() && verdicts[2].is_none());
    }

    proptest::proptest! {
        #[test]
        fn a_clean_path_is_clean(text in "[./a-c~ ]{0,30}") {
            if let Ok(path) = clean(&text) {
                let good = |name: &str| !matches!(name, "" | "." | "..");
                proptest::prop_assert!(path.is_empty() || path.split('/').all(good));
                proptest::prop_assert!(path.is_empty() || clean(&path).unwrap() == path);
            }
        }
    }
}
