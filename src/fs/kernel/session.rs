//! Serving a connection, also one that an earlier process served.
//!
//! A FUSE connection belongs to its `/dev/fuse` descriptor, not to a process. fuser insists on a handshake with the
//! kernel, which happens once in a connection's life. So the handshake is taken apart: we read the kernel's INIT
//! ourselves, play it to fuser over a socketpair, pass fuser's answer on, and then put the live descriptor under
//! fuser's session. A successor plays the same INIT; the kernel refuses the second answer with ENOENT (no such
//! request waits), which is how we learn that we resume. FUSE_NOTIFY_RESEND then makes the kernel hand over again
//! what the dead process had read and not answered (Linux 6.9); without it those callers would wait for ever.
//!
//! Save the INIT before answering it ([`SavedInit::receive`], keep the bytes, then [`Serving::start`]): a daemon that
//! dies in between is then resumed like any other.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, Notifier, Session, SessionACL};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd;

use super::raw;

/// Threads over one shared descriptor. Never cloned descriptors: requests read from a clone die with it.
const THREADS: usize = 4;
/// Read buffer for INIT: the kernel refuses reads shorter than FUSE_MIN_READ_BUFFER (8192).
const INIT_BUFFER: usize = 64 * 1024;
/// `fuse_in_header` of include/uapi/linux/fuse.h.
const IN_HEADER: usize = 40;
/// `fuse_out_header`.
const OUT_HEADER: usize = 16;
/// `FUSE_INIT`.
const OPCODE_INIT: u32 = 26;
/// `FUSE_INIT_EXT`: flags2 is valid.
const INIT_EXT: u64 = 1 << 30;
/// `FUSE_HAS_RESEND`.
const HAS_RESEND: u64 = 1 << 39;
/// `FUSE_NOTIFY_RESEND`.
const NOTIFY_RESEND: i32 = 7;

/// The kernel's INIT request of one connection, byte for byte. Belongs with the descriptor: whoever keeps one keeps
/// both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedInit(Vec<u8>);

impl SavedInit {
    /// Reads the INIT of a connection that was just mounted. Nobody may have read from `device` before.
    pub fn receive(device: BorrowedFd<'_>) -> io::Result<Self> {
        let mut buffer = vec![0; INIT_BUFFER];
        let length = loop {
            match unistd::read(device, &mut buffer) {
                Ok(length) => break length,
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOENT) => continue,
                Err(error) => return Err(error.into()),
            }
        };
        buffer.truncate(length);
        Self::from_bytes(&buffer)
    }

    /// The saved form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads the saved form; refuses what is not one whole INIT request.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let whole = word(bytes, 0).is_some_and(|length| length as usize == bytes.len());
        // major, minor, max_readahead and flags follow the header
        let init = whole && bytes.len() >= IN_HEADER + 16 && word(bytes, 4) == Some(OPCODE_INIT);
        if init {
            Ok(Self(bytes.to_vec()))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "not the first request of a fuse connection"))
        }
    }

    /// What the kernel offered (`FUSE_*` flags of INIT).
    pub fn capabilities(&self) -> u64 {
        let low = u64::from(word(&self.0, IN_HEADER + 12).unwrap_or(0));
        if low & INIT_EXT == 0 {
            return low;
        }
        low | u64::from(word(&self.0, IN_HEADER + 16).unwrap_or(0)) << 32
    }

    /// Whether a successor can take this connection over with nothing lost (Linux 6.9 or newer).
    pub fn survives(&self) -> bool {
        self.capabilities() & HAS_RESEND != 0
    }
}

/// The little word at `offset`; the protocol speaks the host's byte order.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// A connection being served by threads of this process.
#[derive(Debug)]
pub struct Serving {
    thread: JoinHandle<io::Result<()>>,
    notifier: Notifier,
    device: OwnedFd,
    resumed: bool,
}

impl Serving {
    /// Serves `filesystem` on `device`, whose connection must be mounted. `saved` is its INIT where somebody has
    /// read it already; otherwise it is read here and given back to be kept.
    ///
    /// The file system must be ready to answer for everything that the kernel may remember of it: requests arrive
    /// before this returns.
    pub fn start<F: Filesystem>(
        filesystem: F,
        device: OwnedFd,
        saved: Option<SavedInit>,
    ) -> io::Result<(Self, SavedInit)> {
        let init = match saved {
            Some(init) => init,
            None => SavedInit::receive(device.as_fd())?,
        };
        let (session, reply) = handshake(filesystem, &init)?;
        let resumed = answer(device.as_fd(), &reply)?;
        raw::replace(session.as_fd(), device.as_fd())?;
        let notifier = session.notifier();
        let thread = std::thread::Builder::new().name("fuse".to_owned()).spawn(move || session.run())?;
        if resumed {
            resend(device.as_fd(), &init)?;
        }
        Ok((Self { thread, notifier, device, resumed }, init))
    }

    /// Whether an earlier process served this connection.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// For invalidations. Never call it from a handler of the same connection.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// The live device.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Whether the connection is gone (unmounted and no file of it open any more, or aborted).
    pub fn finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the connection is gone.
    pub fn join(self) -> io::Result<()> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("a fuse thread panicked")))
    }

    /// Waits at most `wait` for the connection to go; `false` if it lives on (somebody holds a file of it open), and
    /// is then served until this process ends.
    pub fn stop(self, wait: Duration) -> io::Result<bool> {
        /// The end of a session cannot be waited for with a deadline; this often is often enough for a person.
        const POLL: Duration = Duration::from_millis(5);
        let deadline = Instant::now() + wait;
        while !self.finished() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
        self.join().map(|()| true)
    }
}

/// fuser's session after its handshake with the saved INIT, and the answer it gave.
fn handshake<F: Filesystem>(filesystem: F, init: &SavedInit) -> io::Result<(Session<F>, Vec<u8>)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    unistd::write(&ours, init.as_bytes())?;
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = false;
    let session = Session::from_fd(filesystem, theirs, SessionACL::All, config)?;
    let mut reply = vec![0; INIT_BUFFER];
    let length = unistd::read(&ours, &mut reply)?;
    reply.truncate(length);
    match word(&reply, 4) {
        Some(0) if length > OUT_HEADER => Ok((session, reply)),
        Some(error) => Err(io::Error::from_raw_os_error((error as i32).wrapping_neg())),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "no answer to INIT")),
    }
}

/// Gives the kernel the answer to INIT; `true` if it had one already.
fn answer(device: BorrowedFd<'_>, reply: &[u8]) -> io::Result<bool> {
    match unistd::write(device, reply) {
        Ok(_) => Ok(false),
        Err(Errno::ENOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Asks for everything that was read and never answered. Such a request comes with bit 63 set in its number.
fn resend(device: BorrowedFd<'_>, init: &SavedInit) -> io::Result<()> {
    if !init.survives() {
        tracing::warn!(
            "this kernel cannot resend requests: callers that waited for the last daemon hang until unmounted"
        );
        return Ok(());
    }
    let mut notice = Vec::with_capacity(OUT_HEADER);
    notice.write_all(&(OUT_HEADER as u32).to_ne_bytes())?;
    notice.write_all(&NOTIFY_RESEND.to_ne_bytes())?;
    notice.write_all(&0_u64.to_ne_bytes())?;
    unistd::write(device, &notice)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, flags: u32, flags2: u32) -> Vec<u8> {
        let mut bytes = vec![0; 104];
        bytes[0..4].copy_from_slice(&104_u32.to_ne_bytes());
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes[52..56].copy_from_slice(&flags.to_ne_bytes());
        bytes[56..60].copy_from_slice(&flags2.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_a_whole_init_is_accepted() {
        let good = request(OPCODE_INIT, 0, 0);
        assert_eq!(SavedInit::from_bytes(&good).unwrap().as_bytes(), good);
        assert!(SavedInit::from_bytes(&good[..103]).is_err());
        assert!(SavedInit::from_bytes(&request(1, 0, 0)).is_err());
        assert!(SavedInit::from_bytes(&[]).is_err());
    }

    #[test]
    fn high_flags_count_only_when_announced() {
        let resend = (HAS_RESEND >> 32) as u32;
        assert!(SavedInit::from_bytes(&request(OPCODE_INIT, INIT_EXT as u32, resend)).unwrap().survives());
        assert!(!SavedInit::from_bytes(&request(OPCODE_INIT, 0, resend)).unwrap().survives());
    }

    /// An empty root directory, and nothing else.
    struct Empty;

    impl Filesystem for Empty {
        fn getattr(
            &self,
            _: &fuser::Request,
            ino: fuser::INodeNo,
            _: Option<fuser::FileHandle>,
            reply: fuser::ReplyAttr,
        ) {
            let then = std::time::UNIX_EPOCH;
            let attr = fuser::FileAttr {
                ino,
                size: 7,
                blocks: 1,
                atime: then,
                mtime: then,
                ctime: then,
                crtime: then,
                kind: fuser::FileType::Directory,
                perm: 0o755,
                nlink: 2,
                uid: 0,
                gid: 0,
                rdev: 0,
                blksize: 4096,
                flags: 0,
            };
            reply.attr(&Duration::ZERO, &attr);
        }
    }

    struct Unmount(std::path::PathBuf);

    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = super::super::mount::unmount(&self.0);
        }
    }

    #[test]
    fn a_connection_is_served_resumed_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let device = super::super::mount::open_device().unwrap();
        let mounted = super::super::mount::mount_control(device, dir.path()).unwrap();
        let guard = Unmount(mounted.path.clone());
        assert_ne!(mounted.connection, 0);
        let held = mounted.device.try_clone().unwrap();

        let (first, init) = Serving::start(Empty, mounted.device, None).unwrap();
        assert!(!first.resumed());
        assert!(init.survives(), "needs Linux 6.9");
        assert_eq!(std::fs::metadata(&mounted.path).unwrap().len(), 7);

        let saved = SavedInit::from_bytes(init.as_bytes()).unwrap();
        let (second, _) = Serving::start(Empty, held, Some(saved)).unwrap();
        assert!(second.resumed());
        for _ in 0..20 {
            assert_eq!(std::fs::metadata(&mounted.path).unwrap().len(), 7);
        }
        assert!(matches!(
            super::super::mount::mount_control(super::super::mount::open_device().unwrap(), dir.path()),
            Err(super::super::mount::MountError::Busy(_))
        ));

        drop(guard);
        assert!(first.stop(Duration::from_secs(5)).unwrap());
        assert!(second.stop(Duration::from_secs(5)).unwrap());
    }

    #[test]
    fn a_dead_mount_is_told_from_a_living_one() {
        let dir = tempfile::tempdir().unwrap();
        let device = super::super::mount::open_device().unwrap();
        let mounted = super::super::mount::mount_control(device, dir.path()).unwrap();
        let guard = Unmount(mounted.path.clone());
        let connection = mounted.connection;
        assert_eq!(super::super::mount::state(&guard.0, connection), super::super::mount::State::Silent);
        drop(mounted);
        assert_eq!(super::super::mount::state(&guard.0, connection), super::super::mount::State::Dead);
        let error = super::super::mount::mount(super::super::mount::Tree::Control, &guard.0).unwrap_err();
        assert!(error.to_string().contains("dead mount"), "{error}");
    }

    #[test]
    fn fusermount3_mounts_and_hands_the_device_over() {
        use super::super::mount::{Tree, connection_of, mount_by_helper};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let mounted = mount_by_helper(Tree::Images, &path).unwrap();
        let guard = Unmount(mounted.path.clone());
        assert_eq!(connection_of(&path), Some(mounted.connection));
        let (serving, init) = Serving::start(Empty, mounted.device, None).unwrap();
        assert!(!serving.resumed() && init.survives());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 7);
        drop(guard);
        assert!(serving.stop(Duration::from_secs(5)).unwrap());
        let error = mount_by_helper(Tree::Images, std::path::Path::new("/nowhere/at/all")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
