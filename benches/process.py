"""The daemon as a process: a known image mounted again, memory, and doing nothing."""

import subprocess
import threading
import time

from figures import median
from machine import cpu_seconds, drop_caches, memory, run
from report import Row, mebibytes, milliseconds
from services import Daemon

WORK_TARGET = 0.100
ANON_TARGET = 48 << 20
MILLION_TARGET, FETCH_TARGET = 64 << 20, 256 << 20
IDLE_SECONDS = 20


def remount(bench):
    """Mounting an image of 30,000 files that is in the cache: processor time, wall time, memory."""
    work, wall, fresh, found = [], [], [], []
    daemon = Daemon(bench.registry, "remount", ["tree"])
    with daemon:
        daemon.unmount()
        for _ in range(bench.rounds(11)):
            begun = time.monotonic()
            daemon.mount()
            wall.append(time.monotonic() - begun)
            pid = daemon.pid()
            work.append(cpu_seconds(pid))
            fresh.append(memory(pid)["RssAnon"])
            run("find", f"{daemon.mount_point}/tree/rootfs/", "-ls", stdout=subprocess.DEVNULL)
            found.append(memory(pid)["RssAnon"])
            daemon.unmount()
    rounds = len(work)
    return [
        Row("known image of 30,000 files mounted again: daemon's CPU time until ready", milliseconds(work), "–", "–",
            f"under {WORK_TARGET * 1e3:.0f} ms", median(work) < WORK_TARGET, rounds),
        Row("… wall time of `addonfs mount`", milliseconds(wall), "–", "–", "", True, rounds),
        Row("… RssAnon when ready", mebibytes(fresh), "–", "–", "under 48 MiB", max(fresh) < ANON_TARGET, rounds),
        Row("… RssAnon after `find -ls` over all of it", mebibytes(found), "–", "–", "under 48 MiB",
            max(found) < ANON_TARGET, rounds),
    ]  # fmt: skip


def million(bench):
    """A million entries, mounted and walked."""
    peaks, anonymous, resident, walked = [], [], [], []
    for number in range(bench.rounds(3)):
        daemon = Daemon(bench.registry, f"million-{number}", ["million"])
        watch = Watch(daemon)
        with daemon:
            peaks.append(watch.stop())
            begun = time.monotonic()
            entries = run("sh", "-c", f"find {daemon.mount_point}/million/rootfs/ -ls | wc -l")
            walked.append(time.monotonic() - begun)
            if int(entries) < 1_000_000:
                raise RuntimeError(f"the walk saw {entries.strip()} entries")
            found = memory(daemon.pid())
            anonymous.append(found["RssAnon"])
            resident.append(found["RssAnon"] + found["RssFile"])
    rounds = len(peaks)
    return [
        Row("image of a million entries, walked by `find -ls`: RssAnon", mebibytes(anonymous), "–", "–",
            "under 64 MiB", max(anonymous) < MILLION_TARGET, rounds),
        Row("… resident, with the mapped index", mebibytes(resident), "–", "–", "", True, rounds),
        Row("… largest RssAnon while it was fetched and indexed", mebibytes(peaks), "–", "–", "under 256 MiB",
            max(peaks) < FETCH_TARGET, rounds),
        Row("… the walk", milliseconds(walked), "–", "–", "", True, rounds),
    ]  # fmt: skip


def steady(bench):
    """Memory while an image is read at full speed, and the processor time of a daemon that nobody asks anything."""
    peaks, idle = [], []
    for number in range(bench.rounds(3)):
        daemon = Daemon(bench.registry, f"steady-{number}", ["estargz/science"])
        drop_caches()
        watch = Watch(daemon)
        with daemon:
            run("sh", "-c", f"tar -C {daemon.mount_point}/science/rootfs -cf - . | cat >/dev/null")
            peaks.append(watch.stop())
            time.sleep(2)
            pid = daemon.pid()
            begun = cpu_seconds(pid)
            time.sleep(IDLE_SECONDS)
            idle.append((cpu_seconds(pid) - begun) / IDLE_SECONDS)
    share = f"{median(idle) * 100:.3f} % of a core"
    return [
        Row("largest RssAnon while `tar c` reads an eStargz image of 517 MB from the loopback registry",
            mebibytes(peaks), "–", "–", "under 256 MiB", max(peaks) < FETCH_TARGET, len(peaks)),
        Row(f"CPU of an idle daemon, over {IDLE_SECONDS} s", share, "–", "–", "", True, len(idle)),
    ]  # fmt: skip


class Watch:
    """Looks at a daemon's memory many times a second, from before it is there."""

    def __init__(self, daemon):
        self.daemon, self.peak, self.ended = daemon, 0, threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self):
        pid = None
        while not self.ended.wait(0.005):
            try:
                pid = pid or self.daemon.pid()
                self.peak = max(self.peak, memory(pid)["RssAnon"])
            except (OSError, ValueError, KeyError):
                continue

    def stop(self):
        """Ends; the largest RssAnon seen."""
        self.ended.set()
        self.thread.join()
        return self.peak
