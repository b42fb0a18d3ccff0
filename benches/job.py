"""A warm job through `run`, against the same runtime on a bundle that umoci unpacked.

The bundle's config.json is the one that addonfs generated for a run, taken from that run while it lived. Changed are
only the paths: the root is the unpacked image, the run's folders are plain directories, the control group has another
name, and the network namespace is another one that is there already, as ours is. The runtimes' own rounds with a
namespace that they must make themselves are given beside.
"""

import json
import os
import shutil
import time

from figures import Pairs, median
from machine import first_output, run
from report import Row, milliseconds
from services import Daemon

TARGET = 0.015
JOBS = {
    "hello": (["/bin/echo", "1"], "`echo`"),
    "probe": (["/usr/bin/python3", "/addon/bin/probe.py"], "`python3` with a module"),
}


def job(bench):
    """Each job with each runtime."""
    rows = []
    for runtime in ("crun", "runc"):
        with Daemon(bench.registry, f"job-{runtime}", ["tools"], runtime) as daemon:
            config = generated(daemon)
            for name, (argv, words) in JOBS.items():
                rows.append(_compare(bench, daemon, runtime, config, name, argv, words))
    return rows


def _compare(bench, daemon, runtime, config, name, argv, words):
    program = daemon.mount_point / "tools" / name / "run"
    held, made = (Bundle(bench, runtime, config, argv, there) for there in (True, False))
    with held, made:
        pairs, alone = Pairs(), []
        for _ in range(3):
            first_output(program), first_output(*held.command()), first_output(*made.command())
        for number in range(bench.rounds(31)):
            pairs.round(number, lambda: first_output(program)[1], lambda: first_output(*held.command())[1])
            alone.append(first_output(*made.command())[1])
    more = pairs.differences()
    note = f"{milliseconds(pairs.peer)}; making its network {milliseconds(alone)}"
    return Row(
        f"{words} through `run`, warm, to its exit, {runtime}", milliseconds(pairs.ours), note,
        f"+{median(more) * 1e3:.1f} ms", "at most +15 ms", median(more) <= TARGET, len(more),
    )  # fmt: skip


def generated(daemon):
    """The config.json of a run of `hold`, from its shim's mount namespace."""
    run_folder = daemon.mount_point / "tools/hold/runs/config"
    run_folder.mkdir()
    (run_folder / "ctl").write_text("start\n")
    for _ in range(400):
        time.sleep(0.025)
        for shim in (daemon.folder / "state").rglob("shim.json"):
            pid = json.loads(shim.read_text())["pid"]
            path = f"/proc/{pid}/root{shim.parent}/box"
            if os.path.exists(f"{path}/pid"):  # written by the runtime when the container runs
                with open(f"{path}/bundle/config.json", encoding="utf-8") as file:
                    config = json.load(file)
                (run_folder / "ctl").write_text("kill\n")
                return config
    raise RuntimeError("the run whose config.json is wanted does not start")


class Bundle:
    """A bundle on ext4 with a given config.json. A context manager."""

    def __init__(self, bench, runtime, config, argv, network_is_there, number=0):
        self.runtime, self.count = runtime, 0
        self.folder = bench.work / "bundles" / f"{runtime}-{'held' if network_is_there else 'made'}-{number}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.network = self.folder / "network" if network_is_there else None
        config = json.loads(json.dumps(config))
        config["process"]["args"] = argv
        config["root"]["path"] = str(bench.unpacked("tools"))
        config["linux"]["cgroupsPath"] = f"/addonfs-bench-{os.getpid()}-{number}"
        for mount in config["mounts"]:
            if mount["source"].startswith("/"):
                mount["source"] = self._copy(mount["source"])
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace.pop("path", None)
                if self.network:
                    namespace["path"] = str(self.network)
        (self.folder / "config.json").write_text(json.dumps(config))

    def _copy(self, source):
        """Stands in for a folder of the run: args.json is there, nothing else is needed."""
        folder = self.folder / source.rsplit("/", 1)[1]
        for name in ("", "out", "data"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "args.json").write_text("{}")
        return str(folder)

    def __enter__(self):
        if self.network:
            self.network.touch()
            run("unshare", f"--net={self.network}", "true")
        return self

    def __exit__(self, *_):
        if self.network:
            run("umount", self.network)
        shutil.rmtree(self.folder)

    def command(self):
        """The command that runs the container once."""
        self.count += 1
        return [self.runtime, "--root", self.folder / "state", "run", "--bundle", self.folder, f"b{self.count}"]
