"""From nothing to the first byte of a job's output: what a user waits for the first time.

Systems take turns, round by round, each beginning with the one after the last round's first. Before every clock: empty
stores, dropped page caches. Requests and bytes are those of the registry's own log, until the system was taken down.
"""

import json
import time
from dataclasses import dataclass

from figures import median, quartiles
from machine import drop_caches, first_output
from plot import plot
from report import Row, Table
from systems import Addonfs, AddonfsProfile, Containerd, Nydus, Podman, Skopeo, Stargz

# Bytes are compared as what the job asked for: no system fills an image in the background here.
ALONE = "prefetch: {fill: false}"
LINKS = {"loopback": False, "100 Mbit/s, 20 ms": True}


@dataclass(frozen=True)
class Job:
    """A job of the add-on, and the same for systems that know no add-ons."""

    name: str
    argv: tuple


HELLO = Job("hello", ("/bin/echo", "1"))
JSON = Job("json", ("/usr/bin/python3", "-c", "import json; print(1)"))
PANDAS = Job("pandas", ("/usr/bin/python3", "-c", "import pandas; print(1)"))


@dataclass(frozen=True)
class Work:
    """What is started: the rows' names, and our targets in seconds by link and system."""

    name: str
    image: str
    job: Job
    words: str
    targets: dict


SLOW = "100 Mbit/s, 20 ms"
OURS, PROFILE, PLAIN = "addonfs", "addonfs, profile", "addonfs, tar+gzip"
WORKS = (
    Work("a", "small", HELLO, "1 MB image, echo", {("loopback", OURS): 0.10, (SLOW, OURS): 0.28}),
    Work("b", "tools", JSON, "87 MB image, import json",
         {("loopback", OURS): 0.30, (SLOW, OURS): 1.0, (SLOW, PROFILE): 0.65, (SLOW, PLAIN): 7.4}),
    Work("c", "science", JSON, "517 MB image, import json",
         {(SLOW, OURS): 1.2, (SLOW, PROFILE): 0.95, (SLOW, PLAIN): 43.0}),
    Work("cp", "science", PANDAS, "517 MB image, import pandas",
         {(SLOW, OURS): 5.5, (SLOW, PROFILE): 4.25}),
)  # fmt: skip
BYTES_TARGET, REQUESTS_TARGET = 6_000_000, 20


def systems(bench):
    """By name: those that read lazily, then those that fetch it all."""
    lazy = [
        Addonfs(bench, OURS, "estargz", ALONE),
        AddonfsProfile(bench, PROFILE, "estargz", ALONE),
        Stargz(bench, "stargz", "estargz"),
        Stargz(bench, "stargz, optimized", "optimized"),
        Nydus(bench, "nydus"),
    ]
    whole = [
        Addonfs(bench, PLAIN, "images", ALONE),
        Skopeo(bench, "skopeo + umoci + crun"),
        Podman(bench, "podman"),
        Containerd(bench, "containerd"),
    ]
    return lazy, whole


def start(bench):
    """All works by all systems over both links."""
    lazy, whole = systems(bench)
    kept = bench.work / "start.json"
    taken = _before(kept, bench.only)
    for number in range(bench.rounds(5)):
        for link, slow in LINKS.items():
            for work in WORKS:
                for system in _turn(lazy, number):
                    _take(bench, taken, link, slow, work, system)
                if work.job is not PANDAS and number < _whole_rounds(bench, work, slow):
                    for system in _turn(whole, number):
                        _take(bench, taken, link, slow, work, system)
    kept.write_text(json.dumps([[*what, runs] for what, runs in taken.items()], indent=1))
    works = [(work.name, f"{work.name}: {work.words}") for work in WORKS]
    names = [system.name for system in lazy + whole]
    plot(bench.document.with_suffix(".svg"), works, list(LINKS), names, taken)
    return _rows(bench, taken), [_table(bench, taken, link) for link in LINKS]


def _before(kept, only):
    """What earlier runs took, of that which this one does not take."""
    if not only or not kept.exists():
        return {}
    found = {(link, work, system): runs for link, work, system, runs in json.loads(kept.read_text())}
    return {what: runs for what, runs in found.items() if not only.search(", ".join(what))}


def _whole_rounds(bench, work, slow):
    """A whole image over the slow link takes as long as the link says: few rounds tell it."""
    large = work.image == "science"
    return bench.rounds(1 if large and slow else 3)


def _turn(systems, number):
    first = number % len(systems)
    return systems[first:] + systems[:first]


def _take(bench, taken, link, slow, work, system):
    what = (link, work.name, system.name)
    if not system.has(work.image) or (bench.only and not bench.only.search(", ".join(what))):
        return
    try:
        script = system.begin(work.image, work.job, slow)
        drop_caches()
        begun = bench.registry.begin()
        first, _ = first_output("/bin/sh", "-ec", script)
    except RuntimeError as error:  # the others go on; what is ours then has no figure, which is a missed target
        print(f"{', '.join(what)}: FAILED: {error}", flush=True)
        return
    finally:
        system.end()
    time.sleep(0.1)  # the registry writes its last lines
    requests, size = bench.registry.transferred(begun)
    taken.setdefault(what, []).append((first, size, requests))
    print(f"{work.name}, {link}: {system.name} {first:.3f} s, {size / 1e6:.2f} MB, {requests} requests", flush=True)


def _rows(bench, taken):
    rows = []
    for work in WORKS:
        for (link, system), target in work.targets.items():
            runs = taken.get((link, work.name, system))
            if not runs and bench.only:
                continue
            if not runs:
                rows.append(Row(f"first output of {work.name}, {link}: {system}", "none", "–", "–",
                                f"at most {target:g} s", False, 0))  # fmt: skip
                continue
            seconds = [run[0] for run in runs]
            others = {
                name: median([run[0] for run in found])
                for (at, of, name), found in taken.items()
                if (at, of) == (link, work.name) and not name.startswith("addonfs")
            }
            best = min(others, key=others.get, default=None)
            rows.append(Row(
                f"first output of {work.name}, {link}: {system}", figure(seconds),
                f"{best} {others[best]:.2f} s" if best else "–",
                f"{median(seconds) / others[best]:.2f}×" if best else "–",
                f"at most {target:g} s", median(seconds) <= target, len(seconds),
            ))  # fmt: skip
    runs = taken.get((SLOW, "b", OURS))
    if runs:
        size, requests = (median([run[column] for run in runs]) for column in (1, 2))
        met = size <= BYTES_TARGET and requests <= REQUESTS_TARGET
        rows.append(Row(f"transferred for b, {SLOW}", f"{size / 1e6:.2f} MB, {requests:.0f} requests", "–", "–",
                        "at most 6 MB, 20 requests", met, len(runs)))  # fmt: skip
    return rows


def figure(seconds):
    """Median and quartiles, in s."""
    low, high = quartiles(seconds)
    return f"{median(seconds):.2f} s ({low:.2f}–{high:.2f})"


def _table(bench, taken, link):
    head = ["system"] + [f"{work.name}: s, MB, requests" for work in WORKS]
    lazy, whole = systems(bench)
    lines = []
    for system in lazy + whole:
        cells = [_cell(taken.get((link, work.name, system.name))) for work in WORKS]
        if any(cell != "–" for cell in cells):
            lines.append([system.name, *cells])
    return Table(f"Cold, to the first output of a job, {link}", head, lines)


def _cell(runs):
    if not runs:
        return "–"
    seconds, size, requests = (median([run[column] for run in runs]) for column in range(3))
    return f"**{seconds:.2f}**, {size / 1e6:.1f}, {requests:.0f} (n {len(runs)})"
