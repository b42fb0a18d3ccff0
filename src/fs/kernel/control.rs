//! The control tree's connection: unpacks a request, calls the tree, replies.
//!
//! In: FUSE requests. Out: replies, and polls woken. Every handler answers at once on its own thread, except a write to
//! a job's standard input, whose reply moves into a task with a deadline: FUSE_INTERRUPT is answered ENOSYS by
//! fuser, so a caller that waits here could not even be killed.
//!
//! What is answered ENOSYS is switched off by the kernel for the whole connection, so each is chosen: xattrs (two
//! requests a file in `ls -l`), lseek (the kernel's own is right), copy_file_range and fallocate (callers fall back).

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::fs::control::{Attr, Change, ControlTree, ForgetName, Kind, Request as Asked, Wake, Written};
use crate::fs::errno::errno;
use crate::fs::error::FsError;

/// Set in the number of a request that the kernel sends for the second time (FUSE_UNIQUE_RESEND).
const RESENT: u64 = 1 << 63;

/// Numbers never mean two things here, so there is one generation.
const GENERATION: Generation = Generation(0);

/// The control tree as a [`Filesystem`].
#[derive(Debug)]
pub struct ControlConnection {
    tree: Arc<ControlTree>,
    runtime: tokio::runtime::Handle,
}

impl ControlConnection {
    /// Serves `tree`; slow writes to standard inputs wait on `runtime`.
    pub fn new(tree: Arc<ControlTree>, runtime: tokio::runtime::Handle) -> Self {
        Self { tree, runtime }
    }
}

/// The hook for [`ControlTree::on_forget_name`]: the kernel drops the name, and what hangs below it.
pub fn forget_name(notifier: Notifier) -> ForgetName {
    Box::new(move |parent, name| {
        if let Err(error) = notifier.inval_entry(INodeNo(parent), name) {
            tracing::warn!(?name, %error, "the kernel may show an old name for a while");
        }
    })
}

fn asked(request: &Request) -> Asked {
    let unique = request.unique().0;
    Asked {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        unique: unique & !RESENT,
        resent: unique & RESENT != 0,
    }
}

fn number(error: &FsError) -> Errno {
    Errno::from_i32(errno(error))
}

fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.mtime,
        mtime: attr.mtime,
        ctime: attr.mtime,
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn reply_entry(reply: ReplyEntry, result: Result<Attr, FsError>) {
    match result {
        Ok(attr) => reply.entry(&attr.ttl, &file_attr(&attr), GENERATION),
        Err(error) => reply.error(number(&error)),
    }
}

fn reply_attr(reply: ReplyAttr, result: Result<Attr, FsError>) {
    match result {
        Ok(attr) => reply.attr(&attr.ttl, &file_attr(&attr)),
        Err(error) => reply.error(number(&error)),
    }
}

fn reply_data(reply: ReplyData, result: Result<Vec<u8>, FsError>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(number(&error)),
    }
}

fn reply_empty(reply: ReplyEmpty, result: Result<(), FsError>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(number(&error)),
    }
}

fn reply_write(reply: ReplyWrite, result: Result<u32, FsError>) {
    match result {
        Ok(taken) => reply.written(taken),
        Err(error) => reply.error(number(&error)),
    }
}

impl Filesystem for ControlConnection {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // each is wanted where the kernel has it, and the tree works without
        let wanted = InitFlags::FUSE_ATOMIC_O_TRUNC | InitFlags::FUSE_PARALLEL_DIROPS;
        let _ = config.add_capabilities(wanted & config.capabilities());
        // names of one page at most, and a command is shorter; args.json and stdin arrive in pieces of this
        let _ = config.set_max_write(128 << 10);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _reply_under_way = self.tree.enter();
        reply_entry(reply, self.tree.lookup(parent.0, name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _reply_under_way = self.tree.enter();
        reply_attr(reply, self.tree.getattr(ino.0));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply_attr(reply, self.tree.setattr(ino.0, &Change { mode, uid, gid, size }));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        reply_data(reply, self.tree.readlink(ino.0));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply_entry(reply, self.tree.mkdir(&asked(request), parent.0, name));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.tree.rmdir(&asked(request), parent.0, name));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.tree.unlink(parent.0, name));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.tree.open(ino.0, flags.0) {
            Ok(opened) => {
                let how =
                    if opened.cached { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::FOPEN_DIRECT_IO };
                reply.opened(FileHandle(opened.handle), how);
            }
            Err(error) => reply.error(number(&error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply_data(reply, self.tree.read(ino.0, handle.0, offset, size));
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.tree.write(&asked(request), ino.0, handle.0, offset, data, flags.0) {
            Ok(Written::Now(taken)) => reply.written(taken),
            Ok(Written::Later(taken)) => {
                self.runtime.spawn(async move { reply_write(reply, taken.await) });
            }
            Err(error) => reply.error(number(&error)),
        }
    }

    /// A command is decided in write; there is nothing left to tell at close.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.release(ino.0, handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.tree.opendir(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(number(&error)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.tree.readdir(ino.0, handle.0, offset) {
            Ok(listing) => {
                for (next, entry) in listing.rest() {
                    if reply.add(INodeNo(entry.ino), next, kind(entry.kind), &entry.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(number(&error)),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.tree.releasedir(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn poll(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        waiter: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let wake = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY).then(|| {
            Box::new(move || {
                let _ = waiter.notify(); // an error: the file was closed meanwhile
            }) as Wake
        });
        match self.tree.poll(ino.0, handle.0, events.bits(), wake) {
            Ok(ready) => reply.poll(PollEvents::from_bits_truncate(ready)),
            Err(error) => reply.error(number(&error)),
        }
    }

    // ---- not offered -------------------------------------------------------------------------------------------

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(number(&FsError::NotOffered));
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(number(&FsError::NotOffered));
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(number(&FsError::NotOffered));
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(number(&FsError::NotOffered));
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(number(&FsError::NotOffered));
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(number(&FsError::NotATerminal));
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(number(&FsError::NotImplemented));
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(number(&FsError::NotImplemented));
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(number(&FsError::NotImplemented));
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(number(&FsError::NotImplemented));
    }

    /// The kernel compares modes (`default_permissions`) and does not ask.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(number(&FsError::NotImplemented));
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(number(&FsError::NotImplemented));
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(number(&FsError::NotImplemented));
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(number(&FsError::NotImplemented));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(number(&FsError::NotImplemented));
    }
}
