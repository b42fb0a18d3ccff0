//! Who a job is: the image's `USER` resolved against the image's own passwd and group files.
//!
//! Both files are foreign bytes: read inside the root file system (`RESOLVE_IN_ROOT`: a link that points out ends
//! inside), regular files only, bounded. Missing files are no error as long as only numbers are used.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

/// Largest passwd or group file that is read. The largest real ones have some 10,000 lines.
const FILE_MAX: u64 = 1 << 20;
/// Most supplementary groups: the kernel's NGROUPS_MAX is 65536, and no image needs more than this.
const GROUPS_MAX: usize = 1024;

/// The user of a job's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The home directory of the passwd file.
    pub home: Option<String>,
}

impl JobUser {
    /// The user of an image that names none.
    pub(super) fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), home: None }
    }
}

/// Resolves `USER` (`""`, `name`, `uid`, `name:group`, `uid:gid` and mixtures).
pub fn resolve(rootfs: BorrowedFd<'_>, user: &str) -> Result<JobUser, String> {
    if matches!(user, "0:0") {
        return Ok(JobUser::root());
    }
    let passwd = read(rootfs, "etc/passwd")?;
    let group = if needs_groups(user) { read(rootfs, "etc/group")? } else { String::new() };
    resolve_in(&passwd, &group, user)
}

/// `uid:gid` needs no group file; everything else may.
fn needs_groups(user: &str) -> bool {
    user.split_once(':').is_none_or(|(_, group)| group.parse::<u32>().is_err())
}

fn resolve_in(passwd: &str, group: &str, user: &str) -> Result<JobUser, String> {
    let (who, wanted_group) = match user.split_once(':') {
        Some((who, group)) => (who, Some(group)),
        None => (user, None),
    };
    let who = if who.is_empty() { "0" } else { who };
    let entry = entries(passwd).find(|e| e.name == who || who.parse() == Ok(e.uid));
    let uid = match (&entry, who.parse::<u32>()) {
        (Some(entry), _) => entry.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => {
            return Err(format!(
                "the image's USER {user:?} is not in its /etc/passwd: use a number or add the user to the image"
            ));
        }
    };
    let gid = match wanted_group.filter(|g| !g.is_empty()) {
        Some(wanted) => group_id(group, wanted)
            .ok_or_else(|| format!("the group of the image's USER {user:?} is not in its /etc/group"))?,
        None => entry.as_ref().map_or(0, |e| e.gid),
    };
    // As other engines do it: a group that was asked for by name is the only one.
    let groups = match &entry {
        Some(entry) if wanted_group.is_none() => member_of(group, entry.name, gid),
        _ => Vec::new(),
    };
    let home = entry.map(|e| e.home.to_owned()).filter(|h| h.starts_with('/'));
    Ok(JobUser { uid, gid, groups, home })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (_, home) = (fields.next(), fields.next().unwrap_or_default());
        (!name.is_empty() && !name.starts_with('#')).then_some(Entry { name, uid, gid, home })
    })
}

/// `(name, gid, members)` of every line of a group file.
fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.parse().ok()?, fields.next().unwrap_or_default()))
    })
}

fn group_id(group: &str, wanted: &str) -> Option<u32> {
    group_lines(group)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or_else(|| wanted.parse().ok())
}

fn member_of(group: &str, name: &str, primary: u32) -> Vec<u32> {
    let mut groups: Vec<u32> = group_lines(group)
        .filter(|(_, gid, members)| *gid != primary && members.split(',').any(|m| m == name))
        .map(|(_, gid, _)| gid)
        .take(GROUPS_MAX)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn read(rootfs: BorrowedFd<'_>, path: &str) -> Result<String, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(rootfs, path, flags, Mode::empty(), inside) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Ok(String::new());
        }
        Err(e) => return Err(format!("cannot read the image's /{path}: {e}")),
    };
    let is_file = fstat(&file).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
    if !is_file {
        return Err(format!("the image's /{path} is no regular file"));
    }
    let mut bytes = Vec::new();
    let mut limited = File::from(file).take(FILE_MAX + 1);
    limited.read_to_end(&mut bytes).map_err(|e| format!("cannot read the image's /{path}: {e}"))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!("the image's /{path} is larger than {FILE_MAX} bytes"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\npg:x:70:71:db:/var/lib/pg:/bin/sh\n#c:x:9:9::/:\n";
    const GROUP: &str = "root:x:0:\npg:x:71:\nssl:x:105:a,pg\nwheel:x:10:root,pg\n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: Option<&str>) -> JobUser {
        JobUser { uid, gid, groups: groups.to_vec(), home: home.map(str::to_owned) }
    }

    #[test]
    fn names_numbers_and_mixtures() {
        let pg_home = Some("/var/lib/pg");
        let cases = [
            ("", user(0, 0, &[10], Some("/root"))),
            ("pg", user(70, 71, &[10, 105], pg_home)),
            ("70", user(70, 71, &[10, 105], pg_home)),
            ("pg:ssl", user(70, 105, &[], pg_home)),
            ("pg:4000", user(70, 4000, &[], pg_home)),
            ("1234", user(1234, 0, &[], None)),
            ("1234:5678", user(1234, 5678, &[], None)),
        ];
        for (written, expected) in cases {
            assert_eq!(resolve_in(PASSWD, GROUP, written), Ok(expected), "{written:?}");
        }
        for refused in ["nobody", "pg:nogroup", "-1", "4294967296", "broken"] {
            assert!(resolve_in(PASSWD, GROUP, refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn a_link_that_points_out_is_followed_inside_only() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("etc/passwd")).unwrap();
        let root = File::open(dir.path()).unwrap();
        // The host's file has root; inside, the link points to itself.
        assert_eq!(resolve(root.as_fd(), "7:7"), Ok(user(7, 7, &[], None)));
        assert!(resolve(root.as_fd(), "root").is_err());
        std::fs::create_dir(dir.path().join("etc/group")).unwrap();
        assert!(resolve(root.as_fd(), "root:root").unwrap_err().contains("no regular file"));
    }
}
