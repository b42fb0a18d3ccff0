//! `kill -9` of the process that serves an image connection, again and again, while others read through it.
//!
//! This process is the holder: it keeps the device, and touches nothing on the mount itself, so that whatever goes
//! wrong it can close the device and free everybody. Who serves and who reads is this test's own program, started again.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use addonfs::fetch::store::{Store, StoreOptions};
use addonfs::fs::image::{Images, Side};
use addonfs::fs::kernel::backing::Backings;
use addonfs::fs::kernel::images::{ImageFs, ReadLimits};
use addonfs::fs::kernel::mount;
use addonfs::fs::kernel::session::{SavedInit, Serving};
use addonfs::policy::digest::Digest;
use common::mount::Unmount;

const FOLDER: &str = "ADDONFS_TEST_SERVE";
const FILES: u64 = 40;
const KILLS: usize = 8;
const ROOTFS: &str = "ADDONFS_TEST_READ";

/// Kills and reaps a child, so that nothing is left when an assertion fails.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that reads and prints a line a round.
struct Reader {
    child: Child,
    rounds: Arc<AtomicU64>,
}

impl Reader {
    fn start(rootfs: &Path, first: u64) -> Self {
        let mut child = again("reading_process")
            .env(ROOTFS, rootfs)
            .env("FIRST", first.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let rounds = Arc::new(AtomicU64::new(0));
        let (lines, counter) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&rounds));
        std::thread::spawn(move || {
            for _ in lines.map_while(Result::ok).filter(|line| line.ends_with("round")) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { child, rounds }
    }

    /// Nothing can wake it, not even SIGKILL.
    fn stuck(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten();
        let mut states = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
        states.any(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" D")))
    }
}

fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
}

fn serve(folder: &Path, device: &std::os::fd::OwnedFd) -> Served {
    let child = again("serving_process")
        .env(FOLDER, folder)
        .stdin(Stdio::from(device.try_clone().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Served(child)
}

/// Not a test: the process that serves, when it is started as one.
#[test]
fn serving_process() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let device = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let runtime = common::mount::runtime();
    let store = Store::open(&folder.join("store"), StoreOptions::default()).unwrap();
    let (digest, image) =
        runtime.block_on(common::mount::open(&folder.join("layout"), &store, &folder.join("tree")));
    let images = Arc::new(Images::new(None, "../xattr-images"));
    images.insert(digest, image).unwrap();

    let journal = folder.join("backing");
    let kept = folder.join("init");
    let (saved, backings) = match fs::read(&kept) {
        Ok(bytes) => (SavedInit::from_bytes(&bytes).unwrap(), Backings::resume(&journal).unwrap()),
        Err(_) => {
            let saved = SavedInit::receive(device.as_fd()).unwrap();
            fs::write(&kept, saved.as_bytes()).unwrap();
            (saved, Backings::create(&journal).unwrap())
        }
    };
    let fs = ImageFs::new(Side::Plain, images, backings, runtime.handle().clone(), ReadLimits::default());
    let (serving, _) = Serving::start(fs, device, Some(saved)).unwrap();
    serving.join().unwrap();
}

fn layout(path: &Path) -> Digest {
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..FILES {
        // small ones are read by requests, large ones by the kernel
        let size = if number % 4 == 0 { 300_000 } else { 20_000 };
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(size as u64);
        header.set_cksum();
        tar.append_data(&mut header, format!("dir/{number}"), &common::image::noise(number + 1, size)[..])
            .unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let runtime = common::mount::runtime();
    runtime.block_on(common::image::write(path, "t", &[tar])).1
}

fn expected(number: u64) -> Vec<u8> {
    let size = if number.is_multiple_of(4) { 300_000 } else { 20_000 };
    common::image::noise(number + 1, size)
}

/// Not a test: reads on files held open all the time, others opened anew, names and a listing, until it is killed.
#[test]
fn reading_process() {
    let Some(rootfs) = std::env::var_os(ROOTFS).map(PathBuf::from) else { return };
    let first: u64 = std::env::var("FIRST").unwrap().parse().unwrap();
    let held: Vec<(u64, File)> = [first, first + 4, first + 5]
        .map(|n| (n, File::open(rootfs.join(format!("dir/{n}"))).unwrap()))
        .into();
    let mut number = first;
    loop {
        for (number, file) in &held {
            let good = expected(*number);
            let mut bytes = vec![0; good.len()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == good, "wrong bytes from a file held open");
            // so that the next round asks again
            nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .unwrap();
        }
        number = (number + 7) % FILES;
        let bytes = fs::read(rootfs.join(format!("dir/{number}"))).unwrap();
        assert!(bytes == expected(number), "wrong bytes");
        assert_eq!(fs::read_dir(rootfs.join("dir")).unwrap().count() as u64, FILES);
        let nothing = fs::metadata(rootfs.join(format!("dir/none-{number}"))).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::NotFound);
        // the digest directory is asked for every time
        assert!(fs::metadata(rootfs.parent().unwrap().join("manifest.json")).unwrap().len() > 100);
        println!("round");
    }
}

#[test]
fn killed_again_and_again_nobody_sees_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let digest = layout(&dir.path().join("layout"));
    let mounted = mount::mount_images(mount::open_device().unwrap(), &at).unwrap();
    let _guard = Unmount::of(&mounted);
    let mut device = Some(mounted.device);
    let rootfs = at.join(digest.dashed()).join("rootfs");
    // they wait in the kernel until the first process serves
    let mut readers = [0, 1, 2].map(|first| Reader::start(&rootfs, first));

    let mut failure = None;
    let mut served = None;
    'kills: for _ in 0..=KILLS {
        drop(served.take());
        served = device.as_ref().map(|device| serve(dir.path(), device));
        let before = readers.each_ref().map(|reader| reader.rounds.load(Ordering::Relaxed));
        let patience = Instant::now() + Duration::from_secs(30);
        while readers.iter().zip(before).any(|(r, before)| r.rounds.load(Ordering::Relaxed) < before + 3) {
            if let Some(ended) = readers.iter_mut().find_map(|r| r.child.try_wait().unwrap()) {
                failure = Some(format!("a reader ended: {ended}"));
                break 'kills;
            }
            if Instant::now() > patience {
                let stuck = readers.iter().filter(|reader| reader.stuck()).count();
                failure = Some(format!("readers hang, {stuck} of them unkillably"));
                break 'kills;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for reader in &mut readers {
        let _ = reader.child.kill();
    }
    // with the last copies of the device the connection ends, and whoever hangs in it is free
    drop((served.take(), device.take()));
    for reader in &mut readers {
        let _ = reader.child.wait();
    }
    assert_eq!(failure, None);
    let journal = fs::read_to_string(dir.path().join("backing")).unwrap();
    assert!(journal.starts_with(&format!("start {}\n", KILLS + 1)), "{journal}");
    assert!(journal.contains("\nb "), "no file was read by the kernel: {journal}");
}
