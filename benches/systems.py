"""Systems that bring a job's image and start the job, each from nothing: ours and its peers.

Before the clock: empty stores, daemons up where a system has daemons that stay (containerd, the stargz snapshotter; ours
starts inside the clock, and so does nydusd). The clock starts a shell script whose only output is the job's.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time

from machine import run
from services import Daemon

# Peers run with the limits that an unprivileged machine allows: podman's own are higher.
LIMITS = "--ulimit nofile=1024:1024 --ulimit nproc=1000:1000"


class System:
    """One way to get from a reference to a job's first output. `form` is the image's."""

    form = "images"

    def __init__(self, bench, name):
        self.bench, self.name = bench, name
        # a comma would end an option of the mounts below it
        self.folder = bench.work / "systems" / name.replace(",", "").replace(" ", "-")

    def begin(self, image, job, slow):
        """Empties all stores; the script to time."""
        raise NotImplementedError

    def end(self):
        """Takes processes, mounts and files away."""
        clear(self.folder)

    def reference(self, image, slow):
        """The image, for this system."""
        return self.bench.registry.reference(f"{self.form}/{image}", slow)

    def has(self, image):
        """Whether the image was published in this system's form."""
        return f"{self.form}/{image}" in self.bench.registry.digests


class Addonfs(System):
    """`addonfs mount` with the source in the configuration, then the job's `run`."""

    def __init__(self, bench, name, form, extra=""):
        super().__init__(bench, name)
        self.form, self.extra, self.daemon = form, extra, None

    def begin(self, image, job, slow):
        self.daemon = self._daemon(image, slow)
        mount = shlex.join(str(word) for word in self.daemon.command())
        return f"{mount} >&2; {self.program(image, job)}"

    def _daemon(self, image, slow):
        place, name = f"{self.form}/{image}", f"start-{self.folder.name}"
        return Daemon(self.bench.registry, name, [place], slow=slow, extra=self.extra)

    def program(self, image, job):
        """The job's `run`."""
        return self.daemon.mount_point / image / job.name / "run"

    def end(self):
        self.daemon.__exit__()


class AddonfsProfile(Addonfs):
    """The same with nothing but the profile of an earlier cold start of this job in its state."""

    def begin(self, image, job, slow):
        kept = self.bench.work / "profiles" / f"{image}-{job.name}.json"
        if not kept.exists():
            self._record(image, job, kept)
        script = super().begin(image, job, slow)
        place = self._place(image)
        place.parent.mkdir(parents=True)
        shutil.copy(kept, place)
        return script

    def _place(self, image):
        digest = self.bench.registry.digests[f"{self.form}/{image}"]
        return self.daemon.folder / "state/profiles" / f"{digest.split(':')[1]}.json"

    def _record(self, image, job, kept):
        """A cold start on the loopback; its profile is written some seconds after its last read."""
        kept.parent.mkdir(exist_ok=True)
        self.daemon = self._daemon(image, False)
        with self.daemon:
            run(self.program(image, job))
            for _ in range(900):
                if self._place(image).exists():
                    shutil.copy(self._place(image), kept)
                    return
                time.sleep(0.1)
        raise RuntimeError(f"no profile of {image}/{job.name} was recorded")


class Skopeo(System):
    """skopeo to a layout, umoci to a folder, crun on it."""

    def begin(self, image, job, slow):
        clear(self.folder)
        bundle(self.folder / "spec", self.folder / "unpacked/rootfs", job)
        return (
            f"cd {self.folder}; skopeo copy -q --src-tls-verify=false docker://{self.reference(image, slow)} "
            "oci:layout:image >&2; umoci unpack --image layout:image unpacked >&2; "
            f"crun --root {self.folder}/crun run --bundle spec bench-{os.getpid()}"
        )


class Podman(System):
    """podman with a storage of its own. No raised limits, no event log, no CNI: what it needs least."""

    def begin(self, image, job, slow):
        clear(self.folder)
        self.folder.mkdir(parents=True)
        podman = (
            f"podman --root {self.folder}/root --runroot {self.folder}/run --storage-driver overlay "
            "--cgroup-manager cgroupfs --events-backend none --runtime crun"
        )
        reference = self.reference(image, slow)
        return (
            f"{podman} pull -q --tls-verify=false {reference} >&2; "
            f"{podman} run {LIMITS} --rm --network none {reference} {shlex.join(job.argv)}"
        )


class Containerd(System):
    """A containerd of its own; its runs go through the runc shim."""

    snapshotter = "overlayfs"
    pull = "ctr --address {socket} images pull --plain-http"

    def __init__(self, bench, name, form="images"):
        super().__init__(bench, name)
        self.form, self.processes = form, []
        self.socket = self.folder / "containerd.sock"

    def begin(self, image, job, slow):
        self.start()
        reference = self.reference(image, slow)
        return (
            f"{self.pull.format(socket=self.socket)} {reference} >&2; "
            f"ctr --address {self.socket} run --rm --snapshotter {self.snapshotter} {reference} bench "
            f"{shlex.join(job.argv)}"
        )

    def start(self):
        """Both daemons with empty stores."""
        clear(self.folder)
        (self.folder / "stargz").mkdir(parents=True)
        config = self.folder / "config.toml"
        plugins = [f"io.containerd.snapshotter.v1.{name}" for name in ("btrfs", "zfs", "aufs", "devmapper")]
        plugins += ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.tracing"]
        config.write_text(
            f'version = 2\nroot = "{self.folder}/root"\nstate = "{self.folder}/state"\n'
            f"disabled_plugins = {json.dumps(plugins)}\n"
            f'[grpc]\naddress = "{self.socket}"\n[debug]\nlevel = "warn"\n'
            f'[proxy_plugins.stargz]\ntype = "snapshot"\naddress = "{self.folder}/stargz.sock"\n'
        )
        self._start(self.folder / "stargz.sock", self.bench.work / "stargz", self.folder / "stargz.sock",
                    self.folder / "stargz")  # fmt: skip
        self._start(self.socket, "containerd", "--config", config)
        for _ in range(200):
            if subprocess.run(self.ctr("version"), capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.02)
        raise RuntimeError("containerd does not answer")

    def ctr(self, *words):
        """A command for it."""
        return [str(word) for word in ("ctr", "--address", self.socket, *words)]

    def daemon(self):
        """The process that serves a mounted image."""
        return self.processes[0].pid

    def _start(self, socket, *argv):
        with open(self.bench.work / "log/containerd.log", "a", encoding="utf-8") as log:
            self.processes.append(subprocess.Popen([str(word) for word in argv], stdout=log, stderr=log))
        for _ in range(500):
            if socket.exists():
                return
            time.sleep(0.02)
        raise RuntimeError(f"{argv[0]} does not start: see log/containerd.log")

    def end(self):
        if self.socket.exists():
            tasks = subprocess.run(self.ctr("tasks", "ls", "-q"), capture_output=True, text=True, check=False).stdout
            for task in tasks.split():
                subprocess.run(self.ctr("tasks", "kill", "-s", "9", task), capture_output=True, check=False)
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = []
        clear(self.folder)


class Stargz(Containerd):
    """containerd with the stargz snapshotter: lazy, every chunk verified, no signature."""

    snapshotter = "stargz"
    pull = "ctr-remote --address {socket} images rpull --plain-http"


class Nydus(System):
    """nydusd on nydus' own form, fetched by digests that it is given, unverified; then crun."""

    form = "nydus"

    def begin(self, image, job, slow):
        clear(self.folder)
        tree, cache = self.folder / "tree", self.folder / "cache"
        tree.mkdir(parents=True), cache.mkdir()
        bundle(self.folder / "spec", tree, job)
        registry = self.bench.registry
        config = nydus_config({
            "type": "registry",
            "config": {"scheme": "http", "host": registry.slow_host if slow else registry.host,
                       "repo": f"nydus/{image}", "skip_verify": True},
        }, cache)  # fmt: skip
        (self.folder / "nydusd.json").write_text(json.dumps(config))
        boot = f"http://{config['device']['backend']['config']['host']}/v2/nydus/{image}/blobs"
        return (
            f"cd {self.folder}; curl -sf -o boot {boot}/{registry.digests[f'nydus/{image}']}; "
            f"{nydusd(self.bench)} --config nydusd.json --mountpoint {tree} --bootstrap boot --apisock api.sock "
            "--rlimit-nofile 0 --log-level warn >nydusd.log 2>&1 & echo $! >pid; "
            f"until mountpoint -q {tree}; do kill -0 $(cat pid); sleep 0.005; done; "
            f"crun --root {self.folder}/crun run --bundle spec bench-{os.getpid()}"
        )

    def end(self):
        try:
            os.kill(int((self.folder / "pid").read_text()), signal.SIGTERM)
        except (OSError, ValueError):
            pass
        clear(self.folder)


def nydusd(bench):
    """Where cargo put it."""
    return bench.work / "nydus/bin/nydusd"


def nydus_config(backend, cache):
    """nydusd's configuration: no prefetch, and no digests, which it checks only where asked to."""
    return {
        "device": {"backend": backend, "cache": {"type": "blobcache", "config": {"work_dir": str(cache)}}},
        "mode": "direct", "digest_validate": False, "iostats_files": False, "fs_prefetch": {"enable": False},
    }  # fmt: skip


def bundle(folder, root, job):
    """A bundle that runs the job in `root` as `crun spec` has it, without what a tool at a terminal wants."""
    folder.mkdir(parents=True)
    run("crun", "spec", cwd=folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["process"].update(terminal=False, args=job.argv)
    config["process"].pop("rlimits", None)
    config["root"] = {"path": str(root), "readonly": True}
    path.write_text(json.dumps(config))


def clear(folder):
    """Takes a folder away with everything that is mounted below it."""
    below = f"{folder}/"
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        points = [line.split()[1] for line in mounts]
    for point in sorted((point for point in points if point.startswith(below)), reverse=True):
        subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL, check=False)
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
    raise RuntimeError(f"{folder} is still in use")
