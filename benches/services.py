"""What runs beside the measured: a registry with the signed images, and addonfs daemons on it."""

import json
import os
import shutil
import socket
import subprocess
import time

from machine import run

IMAGES = ("tools", "tree")
PASSWORD = "bench"


class Registry:
    """A docker-registry on the loopback with the images pushed and signed. A context manager."""

    def __init__(self, work, addonfs):
        self.work, self.addonfs, self.process = work, addonfs, None
        self.digests = {}

    def __enter__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"localhost:{probe.getsockname()[1]}"
        folder = self.work / "registry"
        folder.mkdir(exist_ok=True)
        config = self.work / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {accesslog: {disabled: true}, level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}}}}}\nhttp: {{addr: '{self.host}'}}\n"
        )
        log = open(self.work / "log/registry.log", "w", encoding="utf-8")
        self.process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
        self._wait()
        self._publish()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def _wait(self):
        name, port = self.host.split(":")
        for _ in range(200):
            try:
                socket.create_connection((name, int(port))).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the registry does not answer: see log/registry.log")

    def _publish(self):
        environment = {**os.environ, "COSIGN_PASSWORD": PASSWORD}
        if not (self.work / "cosign.key").exists():
            run(self.addonfs, "keygen", "--output", self.work / "cosign", env=environment)
        for image in IMAGES:
            to = f"{self.host}/bench/{image}"
            digest = run(self.addonfs, "push", f"oci:{self.work}/images:{image}", f"{to}:1").strip()
            run(self.addonfs, "sign", "--key", self.work / "cosign.key", f"{to}@{digest}", env=environment)
            self.digests[image] = digest

    def reference(self, image):
        """The image by tag, for peers."""
        return f"{self.host}/bench/{image}:1"

    def source(self, image):
        """The image as a source of ours has to name it."""
        return f"{self.host}/bench/{image}:1@{self.digests[image]}"


class Daemon:
    """One addonfs with directories of its own: mounts, unmounts, tells of its process. A context manager."""

    def __init__(self, registry, name, images, runtime="crun"):
        self.addonfs = registry.addonfs
        self.folder = registry.work / "daemons" / name
        self.mount_point = self.folder / "mnt"
        self.clear()
        sources = "".join(
            f"  - {{name: {image}, type: oci, image: '{registry.source(image)}', mountPath: {image}}}\n"
            for image in images
        )
        self.config = self.folder / "addonfs.yaml"
        self.config.write_text(
            "policy:\n  profile: secure\n"
            f"  allowed_registries: ['{registry.host}']\n  trust: {{keys: ['{registry.work}/cosign.pub']}}\n"
            f"jobs: {{runtime: {shutil.which(runtime)}}}\nsources:\n{sources}"
        )

    def clear(self):
        """Forgets everything: state, layers, trees."""
        for name in ("state", "cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.mount_point.mkdir(parents=True, exist_ok=True)

    def command(self):
        """The command that mounts."""
        return [
            self.addonfs, "mount", "--strict", "--config", self.config,
            "--state-dir", self.folder / "state", "--cache-dir", self.folder / "cache", self.mount_point,
        ]  # fmt: skip

    def mount(self):
        """Mounts and waits until every source is ready, which is what the command does."""
        run(*self.command(), stdout=subprocess.DEVNULL)

    def unmount(self):
        """Unmounts; when this returns the daemon has ended."""
        pid = self.pid()
        run(self.addonfs, "umount", "--cancel", self.mount_point)
        for _ in range(400):
            if not os.path.exists(f"/proc/{pid}"):
                return
            time.sleep(0.02)
        raise RuntimeError(f"daemon {pid} does not end")

    def __enter__(self):
        self.mount()
        return self

    def __exit__(self, *_):
        if os.path.ismount(self.mount_point):
            self.unmount()
        shutil.rmtree(self.folder, ignore_errors=True)

    def status(self):
        """status.json."""
        return json.loads((self.mount_point / ".addonfs/status.json").read_text())

    def pid(self):
        """The daemon's process."""
        return self.status()["pid"]
