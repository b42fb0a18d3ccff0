"""That tree walked, read and archived in every form, with cold and with warm caches.

Cold: freshly mounted, the page cache dropped, then the operation; warm: the same again. What a form's daemon caches on
disk is complete, except for the rows `from the registry`, which begin with nothing and fetch over the loopback. Forms
take turns, operation by operation, and the ratio is that to ext4 in the same round.
"""

import json
import shutil
import subprocess
import time

from figures import median
from forms import IMAGE, Ours, OursRemote, StargzForm, all_forms
from machine import cpu_seconds, drop_caches, memory, run
from report import Row, Table, mebibytes, ratio

LARGE = "data/model"
# What a random read takes is seen in fewer reads where each is slow.
COLD_READS, WARM_READS = 500, 20_000
OPERATIONS = {  # `rootfs` of a source is a link: the slash has it followed
    "find": "find {root}/ -type f",
    "find -ls": "find {root}/ -ls",
    "du": "du -s {root}/",
    "tar c": "tar --one-file-system -C {root}/ -cf - . | cat",
    "sequential": "dd if={root}/" + LARGE + " bs=1M status=none",
    "random 4K": None,
}
TARGETS = {  # of the ratio to ext4: operation, warm
    ("find -ls", False): 1.0, ("du", False): 1.1, ("find -ls", True): 1.0, ("du", True): 1.0, ("find", True): 1.8,
    ("tar c", False): 1.2, ("tar c", True): 1.8, ("sequential", True): 1.05, ("random 4K", True): 1.05,
}  # fmt: skip
TAR_TARGET = 13.0
MEMORY_TARGETS = {"find -ls": 16 << 20, "tar c": 32 << 20}


def forms(bench):
    """Every operation on every form; what memory the daemons have afterwards."""
    run("cc", "-O2", "-o", bench.work / "reader", bench.here / "reader.c")
    local, remote = all_forms(bench)
    taken = []
    try:
        for number in range(bench.rounds(3)):
            for operation in OPERATIONS:
                for form in local[number % len(local):] + local[: number % len(local)]:
                    taken += _measure(bench, form, operation, number)
        for number in range(bench.rounds(3)):
            for form in remote:
                taken += _measure(bench, form, "tar c", number)
    finally:
        for form in local + remote:
            if isinstance(form, StargzForm):
                form.close()
        for form in local + remote:
            if isinstance(form, Ours):
                form.daemon.__exit__()
        shutil.rmtree(bench.work / "mounts", ignore_errors=True)
    (bench.work / "forms.json").write_text(json.dumps(taken, indent=1))
    return _rows(taken), _tables(taken, [form.name for form in local], [form.name for form in remote])


def _measure(bench, form, operation, number):
    """The operation on a freshly mounted form, and again."""
    form.up()
    found = []
    try:
        drop_caches()
        for warm in (False, True):
            if warm and operation == "random 4K":
                _operate(bench, "sequential", form.root, 0)
            pid, begun = form.pid(), bench.registry.begin()
            work = cpu_seconds(pid) if pid else 0.0
            count = (WARM_READS if warm else COLD_READS) if operation == "random 4K" else 1
            seconds = _operate(bench, operation, form.root, count, number) / count
            kept = {"form": form.name, "operation": operation, "warm": warm, "round": number, "seconds": seconds}
            if pid:
                kept |= {"cpu": cpu_seconds(pid) - work, "memory": memory(pid)}
            kept["requests"], kept["bytes"] = bench.registry.transferred(begun)
            found.append(kept)
            if warm and operation == "find" and number == 0:
                _same(form)
            print(f"{operation}, {'warm' if warm else 'cold'}: {form.name} {seconds:.6f} s", flush=True)
    finally:
        form.down()
    return found


def _same(form):
    """A form that shows less than the others would win."""
    entries, plain = (len(run("find", f"{root}/").splitlines()) for root in (form.root, form.bench.unpacked(IMAGE)))
    if abs(entries - plain) > plain // 200:
        raise RuntimeError(f"{form.name} shows {entries} entries, ext4 {plain}")


def _operate(bench, operation, root, count, seed=0):
    if operation == "random 4K":
        return float(run(bench.work / "reader", "random", f"{root}/{LARGE}", count, seed))
    begun = time.monotonic()
    words = OPERATIONS[operation].format(root=root)
    done = subprocess.run(words, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{words}: {done.stderr[-400:]}")
    return time.monotonic() - begun


def _of(taken, form, operation, warm):
    return {
        kept["round"]: kept
        for kept in taken
        if (kept["form"], kept["operation"], kept["warm"]) == (form, operation, warm)
    }


def _ratios(taken, form, operation, warm):
    ours, plain = (_of(taken, name, operation, warm) for name in (form, "ext4"))
    return [ours[number]["seconds"] / plain[number]["seconds"] for number in ours if number in plain]


def _rows(taken):
    rows = []
    for (operation, warm), target in TARGETS.items():
        ours, plain = (
            _unit(median([kept["seconds"] for kept in _of(taken, name, operation, warm).values()]), operation)
            for name in ("addonfs", "ext4")
        )
        times = _ratios(taken, "addonfs", operation, warm)
        what = f"`{operation}`, 69,000 entries, content on disk, {'warm' if warm else 'cold'}"
        rows.append(Row(what, ours, f"ext4 {plain}", ratio(times), f"at most {target:g}×", median(times) <= target,
                        len(times)))  # fmt: skip
    for operation, target in MEMORY_TARGETS.items():
        kept = [kept["memory"]["RssAnon"] for kept in _of(taken, "addonfs", operation, True).values()]
        rows.append(Row(f"… RssAnon after `{operation}` of all of it, twice", mebibytes(kept), "–", "–",
                        f"at most {target >> 20} MiB", max(kept) <= target, len(kept)))  # fmt: skip
    ours, peer = (
        [kept["seconds"] for kept in _of(taken, name, "tar c", False).values()]
        for name in (OursRemote.name, "stargz, from the registry")
    )
    rows.append(Row("`tar c` of the tree, nothing cached, loopback registry", f"{median(ours):.1f} s",
                    f"stargz {median(peer):.1f} s", f"{median(ours) / median(peer):.2f}×",
                    f"at most {TAR_TARGET:g} s", median(ours) <= TAR_TARGET, len(ours)))  # fmt: skip
    return rows


def _unit(seconds, operation):
    return f"{seconds * 1e6:.1f} µs" if operation == "random 4K" else f"{seconds:.3f} s"


def _tables(taken, local, remote):
    tables = []
    for warm in (False, True):
        lines = []
        for form in local:
            cells = [form]
            for operation in OPERATIONS:
                seconds = [kept["seconds"] for kept in _of(taken, form, operation, warm).values()]
                times = median(_ratios(taken, form, operation, warm))
                cells.append(f"{_unit(median(seconds), operation)} ({times:.2f}×)")
            lines.append(cells)
        title = f"Tree of 69,000 entries, content on disk, {'warm' if warm else 'cold'}; in brackets the ratio to ext4"
        tables.append(Table(title, ["form", *(f"`{name}`" for name in OPERATIONS)], lines))
    head = ["daemon", "RssAnon after `find -ls`, MiB", "RssAnon after `tar c`", "resident after `tar c`",
            "CPU of cold `tar c`, s", "cold `tar c`, s", "MB, requests"]  # fmt: skip
    lines = [_daemon(taken, form) for form in local + remote]
    tables.append(Table("Daemons on that tree", head, [line for line in lines if line]))
    return tables


def _daemon(taken, form):
    """What the daemon of a form took; nothing if it has none."""
    read = list(_of(taken, form, "tar c", False).values())
    if not read or "memory" not in read[0]:
        return None

    def middle(of, found=read):
        return median([of(kept) for kept in found])

    walked = list(_of(taken, form, "find -ls", True).values())
    return [
        form,
        f"{middle(lambda kept: kept['memory']['RssAnon'], walked) / 2**20:.1f}" if walked else "–",
        f"{middle(lambda kept: kept['memory']['RssAnon']) / 2**20:.1f}",
        f"{middle(lambda kept: kept['memory']['RssAnon'] + kept['memory']['RssFile']) / 2**20:.1f}",
        f"{middle(lambda kept: kept['cpu']):.2f}",
        f"{middle(lambda kept: kept['seconds']):.1f}",
        f"{middle(lambda kept: kept['bytes']) / 1e6:.0f}, {middle(lambda kept: kept['requests']):.0f}",
    ]
