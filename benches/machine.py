"""The machine: commands, caches, clocks, and what /proc says of a process."""

import os
import signal
import subprocess
import threading
import time

# The slowest system takes a minute for the largest image; containerd's pull was seen to wait for ever.
LONGEST = 150


def run(*argv, **options):
    """Runs a command; its output as text. A failure says what the command said."""
    options.setdefault("stdout", subprocess.PIPE)
    done = subprocess.run([str(word) for word in argv], stderr=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


def drop_caches():
    """Nothing of any file is in memory afterwards, except what is dirty or mapped."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")


def timed(*argv):
    """Wall seconds from starting a command to its end; its output is thrown away."""
    begun = time.monotonic()
    subprocess.run([str(word) for word in argv], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begun


def first_output(*argv):
    """Starts a command; (seconds to its first byte of output, seconds to its end). The output must be `1`, in time."""
    begun = time.monotonic()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([str(word) for word in argv], start_new_session=True, **pipes) as process:
        late = threading.Timer(LONGEST, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        try:
            first = process.stdout.read(1)
            to_first = time.monotonic() - begun
            rest = process.stdout.read()
            words = process.stderr.read()
            code = process.wait()
            to_end = time.monotonic() - begun
        finally:
            late.cancel()
    if code != 0 or (first + rest).strip() != b"1":
        raise RuntimeError(f"{argv}: exit {code}, output {first + rest!r}, {words.decode()[-800:]}")
    return to_first, to_end


def cpu_seconds(pid):
    """Processor time of a process with all its threads, ended ones too: utime + stime, to the nanosecond.

    The same sum as in /proc/PID/stat, which counts in steps of 10 ms: the id of a process's CPU clock is its
    inverted pid and the clock number 2 (clock_getcpuclockid in the C library).
    """
    return time.clock_gettime((~pid << 3) | 2)


def memory(pid):
    """RssAnon, RssFile and VmHWM of a process, in bytes."""
    found = {}
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile", "VmHWM"):
                found[name] = int(value.split()[0]) * 1024
    return found


def describe():
    """One line about this machine."""
    with open("/proc/meminfo", encoding="ascii") as file:
        memory_gib = int(file.readline().split()[1]) / (1 << 20)
    versions = [run(tool, "--version").splitlines()[0].replace(" version", "") for tool in ("crun", "runc", "podman")]
    return (
        f"Linux {os.uname().release}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, ext4; {', '.join(versions)}; "
        f"load average {os.getloadavg()[0]:.1f} when the run ended"
    )
