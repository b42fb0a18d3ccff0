//! System calls: the dozen that are needed, on two architectures (numbers: the kernel's `unistd.h` of each).

use core::slice;

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const EINTR: Self = Self(4);
    pub(crate) const EAGAIN: Self = Self(11);
    pub(crate) const EACCES: Self = Self(13);
    pub(crate) const EEXIST: Self = Self(17);
    pub(crate) const EINVAL: Self = Self(22);
    pub(crate) const ENAMETOOLONG: Self = Self(36);
    pub(crate) const ETIMEDOUT: Self = Self(110);

    /// The error in words.
    pub(crate) fn words(self) -> &'static [u8] {
        match self.0 {
            1 => b"operation not permitted",
            2 => b"no such file or directory",
            5 => b"input/output error",
            7 => b"too large",
            11 => b"try again",
            12 => b"out of memory",
            13 => b"permission denied",
            16 => b"busy",
            17 => b"exists already",
            20 => b"not a directory",
            21 => b"is a directory",
            22 => b"invalid argument",
            24 => b"too many open files",
            27 => b"file too large",
            28 => b"no space left",
            30 => b"read-only file system",
            32 => b"broken pipe",
            36 => b"name too long",
            107 => b"the mount is gone (not connected)",
            110 => b"timed out",
            116 => b"stale",
            122 => b"quota exceeded",
            _ => b"unexpected error",
        }
    }
}

/// Relative to the working directory.
pub(crate) const AT_FDCWD: i32 = -100;

pub(crate) const O_RDONLY: i32 = 0;
pub(crate) const O_WRONLY: i32 = 1;
pub(crate) const O_RDWR: i32 = 2;
pub(crate) const O_TRUNC: i32 = 0o1000;
pub(crate) const O_NONBLOCK: i32 = 0o4000;
pub(crate) const O_PATH: i32 = 0o10_000_000;
const O_CLOEXEC: i32 = 0o2_000_000;
#[cfg(target_arch = "x86_64")]
pub(crate) const O_DIRECTORY: i32 = 0o200_000;
#[cfg(target_arch = "aarch64")]
pub(crate) const O_DIRECTORY: i32 = 0o40_000;

pub(crate) const POLLIN: i16 = 1;
pub(crate) const POLLPRI: i16 = 2;
pub(crate) const POLLOUT: i16 = 4;

/// `struct pollfd`; a negative descriptor is skipped by the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PollFd {
    pub(crate) fd: i32,
    pub(crate) events: i16,
    pub(crate) revents: i16,
}

impl PollFd {
    pub(crate) fn new(fd: i32, events: i16) -> Self {
        Self { fd, events, revents: 0 }
    }
}

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const READ: usize = 0;
    pub(super) const WRITE: usize = 1;
    pub(super) const CLOSE: usize = 3;
    pub(super) const MMAP: usize = 9;
    pub(super) const MUNMAP: usize = 11;
    pub(super) const RT_SIGPROCMASK: usize = 14;
    pub(super) const PREAD64: usize = 17;
    pub(super) const GETPID: usize = 39;
    pub(super) const CLOCK_GETTIME: usize = 228;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const OPENAT: usize = 257;
    pub(super) const MKDIRAT: usize = 258;
    pub(super) const UNLINKAT: usize = 263;
    pub(super) const READLINKAT: usize = 267;
    pub(super) const PPOLL: usize = 271;
    pub(super) const SIGNALFD4: usize = 289;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const MKDIRAT: usize = 34;
    pub(super) const UNLINKAT: usize = 35;
    pub(super) const OPENAT: usize = 56;
    pub(super) const CLOSE: usize = 57;
    pub(super) const READ: usize = 63;
    pub(super) const WRITE: usize = 64;
    pub(super) const PREAD64: usize = 67;
    pub(super) const PPOLL: usize = 73;
    pub(super) const SIGNALFD4: usize = 74;
    pub(super) const READLINKAT: usize = 78;
    pub(super) const EXIT_GROUP: usize = 94;
    pub(super) const CLOCK_GETTIME: usize = 113;
    pub(super) const RT_SIGPROCMASK: usize = 135;
    pub(super) const GETPID: usize = 172;
    pub(super) const MUNMAP: usize = 215;
    pub(super) const MMAP: usize = 222;
}

/// # Safety
///
/// The arguments must be what the call of this number takes; memory they point to must be valid for what it does.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the kernel's convention for `syscall`: number in rax, arguments in these registers, rcx and r11 lost.
    unsafe {
        core::arch::asm!("syscall", inout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    checked(result)
}

/// # Safety
///
/// As on the other architecture.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the kernel's convention for `svc 0`: number in x8, arguments and result in x0 and on.
    unsafe {
        core::arch::asm!("svc 0", in("x8") number, inout("x0") args[0] as isize => result,
            in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5],
            options(nostack));
    }
    checked(result)
}

/// The kernel returns -errno, which is at most 4095.
fn checked(result: isize) -> Result<usize, Errno> {
    if (-4095..0).contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

/// Calls again while a signal interrupts.
fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// A path with the NUL that the kernel wants.
fn with_path<T>(path: &[u8], then: impl FnOnce(*const u8) -> Result<T, Errno>) -> Result<T, Errno> {
    let mut terminated = [0u8; PATH_MAX];
    match terminated.get_mut(..path.len()) {
        Some(copy) if path.len() < PATH_MAX && !path.contains(&0) => copy.copy_from_slice(path),
        _ => return Err(Errno::ENAMETOOLONG),
    }
    then(terminated.as_ptr())
}

/// Longest path the kernel takes, with its NUL.
pub(crate) const PATH_MAX: usize = 4096;

pub(crate) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: takes one integer and does not return.
        let _ = unsafe { call(number::EXIT_GROUP, [code as usize, 0, 0, 0, 0, 0]) };
    }
}

pub(crate) fn open(dir: i32, path: &[u8], flags: i32) -> Result<i32, Errno> {
    with_path(path, |path| {
        // SAFETY: a NUL-terminated path and integers; no O_CREAT, so the mode is not read.
        retry(|| unsafe {
            call(number::OPENAT, [dir as usize, path as usize, (flags | O_CLOEXEC) as usize, 0, 0, 0])
        })
    })
    .map(|fd| fd as i32)
}

pub(crate) fn close(fd: i32) {
    // SAFETY: takes one integer; every descriptor here is an integer that its opener keeps to itself.
    let _ = unsafe { call(number::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
}

pub(crate) fn make_dir(dir: i32, path: &[u8]) -> Result<(), Errno> {
    with_path(path, |path| {
        // SAFETY: a NUL-terminated path and integers.
        retry(|| unsafe { call(number::MKDIRAT, [dir as usize, path as usize, 0o750, 0, 0, 0]) })
    })
    .map(drop)
}

pub(crate) fn remove_dir(dir: i32, path: &[u8]) -> Result<(), Errno> {
    const AT_REMOVEDIR: usize = 0x200;
    with_path(path, |path| {
        // SAFETY: a NUL-terminated path and integers.
        retry(|| unsafe { call(number::UNLINKAT, [dir as usize, path as usize, AT_REMOVEDIR, 0, 0, 0]) })
    })
    .map(drop)
}

/// The target of a symlink; a target that fills `into` may be cut off.
pub(crate) fn read_link<'b>(dir: i32, path: &[u8], into: &'b mut [u8]) -> Result<&'b mut [u8], Errno> {
    let (start, len) = (into.as_mut_ptr() as usize, into.len());
    let len = with_path(path, |path| {
        // SAFETY: a NUL-terminated path, and a buffer of which its length is told.
        unsafe { call(number::READLINKAT, [dir as usize, path as usize, start, len, 0, 0]) }
    })?;
    into.get_mut(..len).ok_or(Errno::ENAMETOOLONG)
}

pub(crate) fn read(fd: i32, into: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most the length of the slice.
    retry(|| unsafe { call(number::READ, [fd as usize, into.as_mut_ptr() as usize, into.len(), 0, 0, 0]) })
}

pub(crate) fn read_at(fd: i32, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let args = [fd as usize, into.as_mut_ptr() as usize, into.len(), offset as usize, 0, 0];
    // SAFETY: the kernel writes at most the length of the slice.
    retry(|| unsafe { call(number::PREAD64, args) })
}

pub(crate) fn write(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel reads at most the length of the slice.
    retry(|| unsafe { call(number::WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) })
}

/// Writes everything, waiting where the descriptor is a non-blocking one; gives up at an error.
pub(crate) fn write_all(fd: i32, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(0) => return false,
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(fd, POLLOUT)], None);
            }
            Err(_) => return false,
        }
    }
    true
}

/// Waits for events, at most `millis`; true if there are any. An interruption counts as none.
pub(crate) fn poll(fds: &mut [PollFd], millis: Option<u32>) -> bool {
    // The kernel may write the time that was left into it.
    let mut time = millis.map(|millis| [u64::from(millis / 1000), u64::from(millis % 1000) * 1_000_000]);
    let time = time.as_mut().map_or(0, |time| time.as_mut_ptr() as usize);
    // SAFETY: an array of pollfd of the told length, a writable timespec or NULL, no signal mask.
    unsafe { call(number::PPOLL, [fds.as_mut_ptr() as usize, fds.len(), time, 0, 0, 0]) }
        .is_ok_and(|ready| ready > 0)
}

/// Seconds since 1970, UTC.
pub(crate) fn now() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: CLOCK_REALTIME (0) and room for a timespec.
    let _ = unsafe { call(number::CLOCK_GETTIME, [0, time.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    time[0]
}

pub(crate) fn pid() -> u64 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { call(number::GETPID, [0; 6]) }.unwrap_or(0) as u64
}

/// Blocks the signals of a set for this process and returns a descriptor from which they can be read.
pub(crate) fn take_signals(set: u64) -> Result<i32, Errno> {
    const SIG_BLOCK: usize = 0;
    const SFD_CLOEXEC_NONBLOCK: usize = 0o2_004_000;
    let set = &raw const set as usize;
    // SAFETY: a signal set of 8 bytes, its size told; no old set is asked for.
    unsafe { call(number::RT_SIGPROCMASK, [SIG_BLOCK, set, 0, 8, 0, 0]) }?;
    // SAFETY: as above; -1 asks for a new descriptor.
    unsafe { call(number::SIGNALFD4, [-1isize as usize, set, 8, SFD_CLOEXEC_NONBLOCK, 0, 0]) }
        .map(|fd| fd as i32)
}

/// New zeroed pages.
pub(crate) fn map(len: usize) -> Result<&'static mut [u8], Errno> {
    const PROT_READ_WRITE: usize = 3;
    const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
    // SAFETY: asks for new memory at an address of the kernel's choice; nothing that exists is touched.
    let start =
        unsafe { call(number::MMAP, [0, len, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1isize as usize, 0]) }?;
    // SAFETY: the kernel gave `len` zeroed bytes that nobody else refers to.
    Ok(unsafe { slice::from_raw_parts_mut(start as *mut u8, len) })
}

/// Gives pages of [`map`] back; the only caller is the drop of their owner.
pub(crate) fn unmap(pages: &mut [u8]) {
    // SAFETY: `Buffer` owns the whole mapping and does not use it afterwards.
    let _ = unsafe { call(number::MUNMAP, [pages.as_mut_ptr() as usize, pages.len(), 0, 0, 0, 0]) };
}
