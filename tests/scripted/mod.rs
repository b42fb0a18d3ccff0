//! A job folder as the mount shows it, scripted: `run` and `plan`, `ctl`, `argspec.json`, and `runs/` in which mkdir
//! makes run folders. What is written to a `ctl` is recorded; answers and contents are set by the test. It has no
//! poll, like a file system that wakes nobody.

#![allow(unreachable_pub, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// What a `ctl` does with a command.
#[derive(Debug, Clone)]
pub struct Answer {
    errno: Option<i32>,
    reply: String,
}

impl Answer {
    pub fn reply(text: &str) -> Self {
        Self { errno: None, reply: text.to_owned() }
    }

    pub fn refusal(errno: i32, text: &str) -> Self {
        Self { errno: Some(errno), reply: text.to_owned() }
    }
}

#[derive(Debug, Default)]
struct Tree {
    /// Path below the folder (empty for itself), and the content of a file; the index is the inode number less one.
    nodes: Vec<(String, Option<Vec<u8>>)>,
    said: Vec<String>,
    answers: Vec<(String, Answer)>,
    /// The reply that waits on a `ctl`, by path: one reader at a time is enough here.
    replies: Vec<(String, Vec<u8>)>,
}

impl Tree {
    fn position(&self, path: &str) -> Option<usize> {
        self.nodes.iter().position(|(name, _)| name == path)
    }

    fn add(&mut self, path: &str, content: Option<&[u8]>) {
        self.nodes.push((path.to_owned(), content.map(<[u8]>::to_vec)));
    }

    fn content(&mut self, path: &str) -> &mut Vec<u8> {
        let index = self.position(path).unwrap_or_else(|| panic!("no {path}"));
        self.nodes[index].1.as_mut().expect("a file")
    }

    fn attr(&self, index: usize) -> FileAttr {
        let (path, content) = &self.nodes[index];
        let executable = matches!(path.rsplit('/').next(), Some("run" | "plan" | "wait" | "follow"));
        let size = content.as_ref().map_or(0, Vec::len) as u64;
        FileAttr {
            ino: INodeNo(index as u64 + 1),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if content.is_some() { FileType::RegularFile } else { FileType::Directory },
            perm: if content.is_none() || executable { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> String {
        let parent = &self.nodes[parent.0 as usize - 1].0;
        let name = name.to_string_lossy();
        if parent.is_empty() { name.into_owned() } else { format!("{parent}/{name}") }
    }
}

/// The mounted folder; unmounted when dropped.
pub struct JobFolder {
    tree: Arc<Mutex<Tree>>,
    _session: BackgroundSession,
    point: tempfile::TempDir,
}

impl JobFolder {
    pub fn mount(argspec: &str) -> Self {
        let mut tree = Tree::default();
        tree.add("", None);
        for name in ["run", "plan"] {
            tree.add(name, Some(addonfs::jobs::runner::RUNNER));
        }
        tree.add("ctl", Some(b""));
        tree.add("argspec.json", Some(argspec.as_bytes()));
        tree.add("runs", None);
        let tree = Arc::new(Mutex::new(tree));
        let point = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("scripted".to_owned())];
        config.n_threads = Some(2);
        let session =
            fuser::spawn_mount(Fake(tree.clone()), point.path(), &config).expect("mount needs /dev/fuse");
        Self { tree, _session: session, point }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap()
    }

    pub fn path(&self) -> &Path {
        self.point.path()
    }

    pub fn command(&self, program: &str) -> Command {
        Command::new(PathBuf::from(self.path()).join(program))
    }

    /// Commands so far, each with the path of its `ctl`.
    pub fn said(&self) -> Vec<String> {
        self.tree().said.clone()
    }

    /// Sets the answer of a `ctl`; `runs/*/ctl` is that of every run.
    pub fn answer(&self, path: &str, answer: Answer) {
        self.tree().answers.insert(0, (path.to_owned(), answer));
    }

    pub fn set(&self, path: &str, content: &str) {
        *self.tree().content(path) = content.as_bytes().to_vec();
    }

    pub fn append(&self, path: &str, content: &str) {
        self.tree().content(path).extend_from_slice(content.as_bytes());
    }

    pub fn get(&self, path: &str) -> String {
        String::from_utf8(self.tree().content(path).clone()).unwrap()
    }

    /// Names of the runs that exist.
    pub fn runs(&self) -> Vec<String> {
        let tree = self.tree();
        let names = tree.nodes.iter().filter(|(_, content)| content.is_none());
        names.filter_map(|(path, _)| path.strip_prefix("runs/")).map(str::to_owned).collect()
    }
}

struct Fake(Arc<Mutex<Tree>>);

impl Filesystem for Fake {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = self.0.lock().unwrap();
        match tree.position(&tree.child(parent, name)) {
            Some(index) => reply.entry(&Duration::ZERO, &tree.attr(index), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &self.0.lock().unwrap().attr(ino.0 as usize - 1));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut tree = self.0.lock().unwrap();
        let index = ino.0 as usize - 1;
        if let (Some(size), Some(content)) = (size, &mut tree.nodes[index].1) {
            content.resize(size as usize, 0);
        }
        reply.attr(&Duration::ZERO, &tree.attr(index));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        let mut tree = self.0.lock().unwrap();
        let path = tree.child(parent, name);
        if tree.position(&path).is_some() {
            return reply.error(Errno::EEXIST);
        }
        let index = tree.nodes.len();
        tree.add(&path, None);
        for file in ["args.json", "ctl", "stdout", "stderr", "exit_code", "last_error", "stdin"] {
            tree.add(&format!("{path}/{file}"), Some(b""));
        }
        tree.add(&format!("{path}/state"), Some(b"created\n"));
        for program in ["wait", "follow"] {
            tree.add(&format!("{path}/{program}"), Some(addonfs::jobs::runner::RUNNER));
        }
        reply.entry(&Duration::ZERO, &tree.attr(index), Generation(0));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut tree = self.0.lock().unwrap();
        let path = tree.child(parent, name);
        // Numbers of the others stay: the nodes are renamed out of sight.
        for (node, _) in &mut tree.nodes {
            if *node == path || node.starts_with(&format!("{path}/")) {
                node.insert_str(0, "gone/");
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let attr = self.0.lock().unwrap().attr(ino.0 as usize - 1);
        let direct = if attr.perm == 0o755 { FopenFlags::empty() } else { FopenFlags::FOPEN_DIRECT_IO };
        reply.opened(FileHandle(0), direct);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut tree = self.0.lock().unwrap();
        let path = tree.nodes[ino.0 as usize - 1].0.clone();
        if path.ends_with("ctl") {
            let waiting = tree.replies.iter().position(|(of, _)| *of == path);
            return reply.data(&waiting.map(|index| tree.replies.remove(index).1).unwrap_or_default());
        }
        let content = tree.nodes[ino.0 as usize - 1].1.clone().unwrap_or_default();
        let start = (offset as usize).min(content.len());
        reply.data(&content[start..(start + size as usize).min(content.len())]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut tree = self.0.lock().unwrap();
        let path = tree.nodes[ino.0 as usize - 1].0.clone();
        let name = path.rsplit('/').next().unwrap_or_default();
        if name == "ctl" {
            let any = if path.starts_with("runs/") { "runs/*/ctl" } else { "ctl" };
            let line = String::from_utf8_lossy(data).trim_end().to_owned();
            tree.said.push(format!("{path} {line}"));
            let answer = tree
                .answers
                .iter()
                .find(|(of, _)| *of == path || of == any)
                .map(|(_, answer)| answer.clone());
            let answer = answer.unwrap_or_else(|| Answer::reply("ok\n"));
            tree.replies.push((path, answer.reply.into_bytes()));
            return match answer.errno {
                Some(errno) => reply.error(Errno::from_i32(errno)),
                None => reply.written(data.len() as u32),
            };
        }
        if name == "stdin" {
            let state = path.replace("/stdin", "/state");
            if tree.content(&state).starts_with(b"created") {
                return reply.error(Errno::EAGAIN);
            }
            // Takes less than offered, as a pipe does.
            let taken = data.len().min(10_000);
            tree.content(&path).extend_from_slice(&data[..taken]);
            return reply.written(taken as u32);
        }
        let content = tree.content(&path);
        content.resize(content.len().max(offset as usize + data.len()), 0);
        content[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        reply.written(data.len() as u32);
    }
}
