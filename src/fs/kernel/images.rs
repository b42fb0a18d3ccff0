//! An image connection: FUSE requests answered from [`Images`].
//!
//! Metadata and content at hand are answered on the FUSE thread. A read that must fetch takes its reply into a task,
//! with a share of the memory that all such reads may have together and a deadline for the whole request; when that
//! passes the caller gets ETIMEDOUT and the fetch goes on for the next one.
//!
//! Unoffered operations are answered one by one: ENOSYS tells the kernel never to ask again on this connection, so it
//! stands only where that is wanted (fuser's default would say it for everything).

use std::ffi::OsStr;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use futures_util::future::BoxFuture;
use nix::libc;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::backing::{Backings, Way};
use super::owed::Owed;
use super::raw;
use crate::fetch::error::FetchError;
use crate::fetch::layer::Read;
use crate::fetch::meter::{Meter, counted};
use crate::fs::errno::errno;
use crate::fs::error::FsError;
use crate::fs::image::images::{Attr, Found, Images, Lasting, Side};
use crate::fs::image::stream::{Forget, is_streaming};

/// Ten years: for ever, to a kernel that makes a signed time of it.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Requests in the background before the kernel holds the next back. At 64 a local file waited 2.5 s behind 100 slow
/// reads, outside any deadline of ours; at 256 and above it did not wait.
const MAX_BACKGROUND: u16 = 1024;
/// Largest request: the kernel makes none larger (256 pages).
const MAX_REQUEST: u32 = 1 << 20;
/// Inode numbers are never used again for other bytes.
const GENERATION: Generation = Generation(0);

/// How reads that must fetch are bounded.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    /// The longest a caller waits.
    pub deadline: Duration,
    /// Bytes of all answers being waited for together.
    pub pending_bytes: u32,
}

impl Default for ReadLimits {
    /// 30 s, and 64 MiB: 512 reads of the usual 128 KiB.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), pending_bytes: 64 << 20 }
    }
}

/// Who is told of a refused read: its inode and the words behind the errno. Called in a task of the runtime.
pub type Refused = Arc<dyn Fn(u64, &str) + Send + Sync>;

/// Who accounts for what the reads of a process fetch. Asked in a task of the runtime, only for reads that must wait.
pub type Accounts = Arc<dyn Fn(u32) -> Option<Meter> + Send + Sync>;

/// The file system of an image connection.
pub struct ImageFs {
    side: Side,
    images: Arc<Images>,
    backings: Backings,
    runtime: Handle,
    limits: ReadLimits,
    budget: Arc<Semaphore>,
    refused: Refused,
    accounts: Accounts,
    no_opendir: bool,
}

impl std::fmt::Debug for ImageFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageFs")
            .field("side", &self.side)
            .field("images", &self.images)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl ImageFs {
    /// Serves those of `images` that are on `side`; fetches run on `runtime`. `backings` are this connection's own.
    pub fn new(
        side: Side,
        images: Arc<Images>,
        backings: Backings,
        runtime: Handle,
        limits: ReadLimits,
    ) -> Self {
        let budget = Arc::new(Semaphore::new(limits.pending_bytes as usize));
        let refused: Refused = Arc::new(|_, _| {});
        let accounts: Accounts = Arc::new(|_| None);
        Self { side, images, backings, runtime, limits, budget, refused, accounts, no_opendir: false }
    }

    /// Has `accounts` say who accounts for what a process fetches.
    #[must_use]
    pub fn on_fetched(mut self, accounts: Accounts) -> Self {
        self.accounts = accounts;
        self
    }

    /// Tells `refused` of every read that comes to nothing.
    #[must_use]
    pub fn on_refused(mut self, refused: Refused) -> Self {
        self.refused = refused;
        self
    }

    /// Answers a read whose content must be fetched, or has to arrive.
    fn miss<B: Deref<Target = [u8]> + Send + 'static>(
        &self,
        ino: u64,
        content: BoxFuture<'static, Result<B, FetchError>>,
        size: u32,
        process: u32,
        reply: ReplyData,
    ) {
        let reply = Owed::new(reply);
        let budget = Arc::clone(&self.budget);
        let share = size.min(self.limits.pending_bytes);
        let deadline = self.limits.deadline;
        let (refused, accounts) = (Arc::clone(&self.refused), Arc::clone(&self.accounts));
        self.runtime.spawn(async move {
            let mut permit = None;
            let fetched = tokio::time::timeout(deadline, async {
                permit = budget.acquire_many_owned(share).await.ok();
                // a task of its own, so that it goes on when nobody waits any more
                tokio::spawn(counted(accounts(process), content)).await
            });
            let (error, words) = match fetched.await {
                Ok(Ok(Ok(bytes))) => return reply.answer(|reply| reply.data(&bytes)),
                Ok(Ok(Err(error))) => {
                    let words = error.to_string();
                    (errno(&FsError::Fetch(error)), words)
                }
                Ok(Err(error)) => (libc::EIO, format!("a fetch broke off: {error}")),
                Err(_) => {
                    let words = "no answer within the read deadline; the fetch goes on";
                    (libc::ETIMEDOUT, format!("{words} ({deadline:?}, `read.deadline`)"))
                }
            };
            tracing::warn!(ino, errno = error, "a read was refused: {words}");
            // before the errno: who sees that one finds these
            refused(ino, &words);
            reply.answer(|reply| reply.error(Errno::from_i32(error)));
            drop(permit);
        });
    }
}

/// Makes the kernel drop the pages of inodes: those that programs had mapped stay otherwise.
pub fn forget_content(notifier: Notifier, runtime: Handle) -> Forget {
    Box::new(move |inodes: Range<u64>| {
        let notifier = notifier.clone();
        // not on a thread that serves: the kernel waits for reads of these pages that are under way
        runtime.spawn_blocking(move || {
            for ino in inodes {
                // most it does not know
                drop(notifier.inval_inode(INodeNo(ino), 0, 0));
            }
        });
    })
}

/// What the kernel is told of an inode.
fn file_attr(attr: &Attr) -> FileAttr {
    let mtime = time(attr.mtime_sec, attr.mtime_nsec);
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

fn time(seconds: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    time.and_then(|time| time.checked_add(Duration::from_nanos(u64::from(nanos)))).unwrap_or(UNIX_EPOCH)
}

fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFIFO => FileType::NamedPipe,
        _ => FileType::RegularFile,
    }
}

fn ttl(lasting: Lasting) -> Duration {
    match lasting {
        Lasting::Never => Duration::ZERO,
        Lasting::Forever => FOREVER,
    }
}

fn number(error: &FsError) -> Errno {
    Errno::from_i32(errno(error))
}

/// Answers getxattr(2) and listxattr(2): without room the question is how much it takes.
fn sized(bytes: &[u8], room: u32, reply: ReplyXattr) {
    // both kinds are at most 64 KiB
    let length = bytes.len() as u32;
    if room == 0 {
        reply.size(length);
    } else if length > room {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(bytes);
    }
}

/// "There is nothing of that name, and there never will be": an entry without an inode.
fn nothing() -> FileAttr {
    let mut attr = file_attr(&Attr {
        ino: 0,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        size: 0,
        mtime_sec: 0,
        mtime_nsec: 0,
        rdev: 0,
    });
    attr.blksize = 0;
    attr
}

impl Filesystem for ImageFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // content never changes under an inode: no reason ever to drop its pages
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        // has the kernel enforce access control lists, and remember them: without it a list would only be shown, and
        // the mode's group bits, which then are its mask, would let in a group that the list keeps out
        if self.side == Side::Xattrs {
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
        }
        self.no_opendir = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_ok();
        // 1: files may lie on an ordinary file system, and an overlay may still be put on top of this one
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err()
            || config.set_max_stack_depth(1).is_err()
        {
            self.backings.switch_off("needs Linux 6.9 or newer");
        }
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.images.lookup(self.side, parent.0, name.as_bytes()) {
            Ok(Found::Entry(attr, lasting)) => {
                reply.entry_with_ttls(&ttl(attr.lasting()), &ttl(lasting), &file_attr(&attr), GENERATION);
            }
            Ok(Found::Nothing(Lasting::Forever)) => reply.entry(&FOREVER, &nothing(), GENERATION),
            Ok(Found::Nothing(Lasting::Never)) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(number(&error)),
        }
    }

    // numbers are a function of the image: there is nothing to forget
    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.images.getattr(ino.0) {
            Ok(attr) => reply.attr(&ttl(attr.lasting()), &file_attr(&attr)),
            Err(error) => reply.error(number(&error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.images.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(number(&error)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        if is_streaming(ino.0) {
            // not through the page cache: what is not proven is kept by nobody
            return match self.images.streams().open(ino.0) {
                Ok(()) => {
                    reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH)
                }
                Err(error) => reply.error(number(&error)),
            };
        }
        let complete = match self.images.open(ino.0) {
            Ok(complete) => complete,
            Err(error) => return reply.error(number(&error)),
        };
        let way = self.backings.open(
            ino.0,
            complete.as_ref(),
            |file| reply.open_backing(file).map(fuser::BackingId::into_raw),
            |id| raw::close_through(&reply, id),
        );
        let handle = FileHandle(self.backings.handle(way));
        match way {
            // NOFLUSH and nothing else: with KEEP_CACHE the kernel answers EIO
            Way::Through(id) => raw::opened_passthrough(reply, handle, FopenFlags::FOPEN_NOFLUSH, id),
            Way::Cached => {
                reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if is_streaming(ino.0) {
            return match self.images.streams().read(ino.0, offset, size) {
                Ok(content) => self.miss(ino.0, content, size, request.pid(), reply),
                Err(error) => reply.error(number(&error)),
            };
        }
        match self.images.read(ino.0, offset, size) {
            Ok(Read::Ready(bytes)) => reply.data(&bytes),
            Ok(Read::Pending(content)) => self.miss(ino.0, content, size, request.pid(), reply),
            Err(error) => reply.error(number(&error)),
        }
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
        match is_streaming(ino.0) {
            true => self.images.streams().release(ino.0),
            false => self.backings.release(ino.0, handle.0),
        }
        reply.ok();
    }

    /// ENOSYS makes the kernel open directories by itself and keep their listings (of a streaming tree, until it sees
    /// another mtime, and it asks for that every time).
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, from: u64, mut reply: ReplyDirectory) {
        let done = self.images.readdir(ino.0, from, |entry| {
            let name = OsStr::from_bytes(entry.name);
            !reply.add(INodeNo(entry.attr.ino), entry.next, kind(entry.attr.mode), name)
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(number(&error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        from: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let done = self.images.readdir(ino.0, from, |entry| {
            let (name, attr) = (OsStr::from_bytes(entry.name), file_attr(&entry.attr));
            !reply.add(attr.ino, entry.next, name, &ttl(entry.attr.lasting()), &attr, GENERATION)
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(number(&error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // no blocks, no files: a df over it adds nothing
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
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
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    /// On the usual side ENOSYS, which the kernel takes for all files and for ever: it makes `ls -l` four times faster
    /// than ENODATA would.
    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, room: u32, reply: ReplyXattr) {
        match self.side {
            Side::Plain => reply.error(Errno::ENOSYS),
            Side::Xattrs => match self.images.xattr(ino.0, name.as_bytes()) {
                Ok(Some(value)) => sized(&value, room, reply),
                Ok(None) => reply.error(Errno::NO_XATTR),
                Err(error) => reply.error(number(&error)),
            },
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, room: u32, reply: ReplyXattr) {
        match self.side {
            Side::Plain => reply.error(Errno::ENOSYS),
            Side::Xattrs => match self.images.xattr_names(ino.0) {
                Ok(names) => sized(&names, room, reply),
                Err(error) => reply.error(number(&error)),
            },
        }
    }

    // ENOSYS from here on: the kernel does it by itself, or says that there is none, and never asks again

    /// close(2) succeeds.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// fsync(2) succeeds.
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// fsync(2) succeeds.
    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// `default_permissions` decides.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
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
        reply.error(Errno::ENOSYS);
    }

    /// Not ENOSYS and not EPERM: overlayfs asks for file attributes at every copy-up and takes ENOTTY for "none".
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
        reply.error(Errno::ENOTTY);
    }
}
