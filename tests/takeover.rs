//! `kill -9` of the process that serves an image connection, again and again, while others read through it.
//!
//! This process is the holder: it keeps the device. The serving process is this test's own program, started again
//! with the device as its standard input.

mod common;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use addonfs::fetch::store::{Store, StoreOptions};
use addonfs::fs::image::Images;
use addonfs::fs::kernel::backing::Backings;
use addonfs::fs::kernel::images::{ImageFs, ReadLimits};
use addonfs::fs::kernel::mount;
use addonfs::fs::kernel::session::{SavedInit, Serving};
use addonfs::policy::digest::Digest;
use common::mount::Unmount;

const FOLDER: &str = "ADDONFS_TEST_SERVE";

/// Kills and reaps a child, so that nothing is left when an assertion fails.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(folder: &Path, device: &std::os::fd::OwnedFd) -> Served {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serving_process", "--nocapture"])
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
    let images = Arc::new(Images::new(None));
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
    let fs = ImageFs::new(images, backings, runtime.handle().clone(), ReadLimits::default());
    let (serving, _) = Serving::start(fs, device, Some(saved)).unwrap();
    serving.join().unwrap();
}

fn layout(path: &Path) -> Digest {
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..40_u64 {
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

/// Reads on one file held open all the time, others opened anew, names and a listing, until told to stop.
fn reader(rootfs: &Path, first: u64, stop: &AtomicBool, rounds: &AtomicU64) {
    let held: Vec<(u64, File)> =
        [first, first + 4, first + 5].map(|n| (n, File::open(rootfs.join(format!("dir/{n}"))).unwrap())).into();
    let mut number = first;
    while !stop.load(Ordering::Relaxed) {
        for (number, file) in &held {
            let good = expected(*number);
            let mut bytes = vec![0; good.len()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == good, "wrong bytes from a file held open");
            // so that the next round asks again
            nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        }
        number = (number + 7) % 40;
        let mut bytes = Vec::new();
        File::open(rootfs.join(format!("dir/{number}"))).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes == expected(number), "wrong bytes");
        assert_eq!(fs::read_dir(rootfs.join("dir")).unwrap().count(), 40);
        let nothing = fs::metadata(rootfs.join(format!("dir/none-{number}"))).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::NotFound);
        // the digest directory is asked for every time
        assert!(fs::metadata(rootfs.parent().unwrap().join("manifest.json")).unwrap().len() > 100);
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Threads of this process that nothing could wake.
fn uninterruptible() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let states = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    states.filter(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" D"))).count()
}

#[test]
fn killed_again_and_again_nobody_sees_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let digest = layout(&dir.path().join("layout"));
    let mounted = mount::mount_images(mount::open_device().unwrap(), &at).unwrap();
    let _guard = Unmount::of(&mounted);
    let mut served = serve(dir.path(), &mounted.device);

    let rootfs = at.join(digest.dashed()).join("rootfs");
    // waits in the kernel until the first process serves
    assert_eq!(fs::read_dir(rootfs.join("dir")).unwrap().count(), 40);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let readers: Vec<_> = [0, 1, 2]
            .map(|first| {
                let (rootfs, stop, rounds) = (&rootfs, &stop, &rounds);
                scope.spawn(move || reader(rootfs, first, stop, rounds))
            })
            .into();
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(150));
            drop(std::mem::replace(&mut served, serve(dir.path(), &mounted.device)));
            let before = rounds.load(Ordering::Relaxed);
            let patience = Instant::now() + Duration::from_secs(30);
            while rounds.load(Ordering::Relaxed) < before + 3 && readers.iter().all(|r| !r.is_finished()) {
                if Instant::now() > patience {
                    stop.store(true, Ordering::Relaxed);
                    let _ = mount::abort(mounted.connection);
                    panic!("readers hang, {} of them unkillably", uninterruptible());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    let journal = fs::read_to_string(dir.path().join("backing")).unwrap();
    assert!(journal.starts_with("start 9\n"), "{journal}");
    assert!(journal.contains("\nb "), "no file was read by the kernel: {journal}");
}
