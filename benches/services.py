"""What runs beside the measured: a registry with the signed images, the slow link to it, and addonfs daemons."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from machine import run

PASSWORD = "bench"
# The layouts of the work directory: forms of the images, each form of each image a repository of its own.
FORMS = ("images", "estargz")
REQUEST = re.compile(r'"(GET|HEAD) (\S+) HTTP/1\.[01]" (\d+) (\d+)')


class Registry:
    """A docker-registry on the loopback with the images pushed and signed, and the link to it. A context manager."""

    def __init__(self, work, addonfs):
        self.work, self.addonfs, self.processes = work, addonfs, []
        self.log = work / "log/registry.log"
        self.link_log = work / "log/link.log"
        self.known = work / "published.json"
        self.digests = json.loads(self.known.read_text()) if self.known.exists() else {}

    def __enter__(self):
        port, slow = free_ports(2)
        self.host, self.slow_host = f"localhost:{port}", f"localhost:{slow}"
        folder = self.work / "registry"
        folder.mkdir(exist_ok=True)
        config = self.work / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {accesslog: {disabled: false}, level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}}}}}\nhttp: {{addr: '{self.host}'}}\n"
        )
        self._start(self.log, "docker-registry", "serve", config)
        link = os.path.join(os.path.dirname(__file__), "link.py")
        self.link = self._start(self.work / "log/link.err", sys.executable, link, slow, port, self.link_log)
        for number in (port, slow):
            wait_for(number)
        try:
            self._publish()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
            process.wait()

    def _start(self, log, *argv):
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen([str(word) for word in argv], stdout=file, stderr=file)
        self.processes.append(process)
        return process

    def _publish(self):
        for form in FORMS:
            index = json.loads((self.work / form / "index.json").read_text())
            for manifest in index["manifests"]:
                name = manifest["annotations"]["org.opencontainers.image.ref.name"]
                if self.digests.get(f"{form}/{name}") != manifest["digest"]:
                    self._push(form, name)

    def _push(self, form, image):
        """Pushes and signs an image."""
        at = f"{form}/{image}"
        environment = {**os.environ, "COSIGN_PASSWORD": PASSWORD}
        if not (self.work / "cosign.key").exists():
            run(self.addonfs, "keygen", "--output", self.work / "cosign", env=environment)
        digest = run(self.addonfs, "push", f"oci:{self.work}/{form}:{image}", f"{self.host}/{at}:1").strip()
        run(self.addonfs, "sign", "--key", self.work / "cosign.key", f"{self.host}/{at}@{digest}", env=environment)
        self.note(at, digest)

    def note(self, at, digest):
        """Remembers, for later runs, what is in the registry."""
        self.digests[at] = digest
        self.known.write_text(json.dumps(self.digests, indent=1))

    def manifest_digest(self, at):
        """The digest of what is there by the tag."""
        accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
        url = f"http://{self.host}/v2/{at}/manifests/1"
        words = urllib.request.Request(url, method="HEAD", headers={"Accept": accept})
        with urllib.request.urlopen(words) as answer:
            return answer.headers["Docker-Content-Digest"]

    def reference(self, at, slow=False):
        """An image (`FORM/NAME`) by tag, for peers."""
        return f"{self.slow_host if slow else self.host}/{at}:1"

    def source(self, at, slow=False):
        """The image as a source of ours has to name it."""
        return f"{self.reference(at, slow)}@{self.digests[at]}"

    def begin(self):
        """Counts from here on."""
        self.link.send_signal(signal.SIGUSR1)
        time.sleep(0.05)
        return self.log.stat().st_size

    def transferred(self, begun):
        """Requests and bytes of bodies since then, of requests that have ended."""
        requests = size = 0
        with open(self.log, encoding="utf-8", errors="replace") as file:
            file.seek(begun)
            for line in file:
                if found := REQUEST.search(line):
                    requests += 1
                    size += int(found[4]) if found[1] == "GET" else 0
        return requests, size


def free_ports(count):
    """Ports of the loopback that nobody listens at."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(port):
    """Waits until somebody listens."""
    for _ in range(200):
        try:
            socket.create_connection(("localhost", port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nobody answers at port {port}: see the log directory")


class Daemon:
    """One addonfs with directories of its own: mounts, unmounts, tells of its process. A context manager.

    `images` are names (`FORM/NAME`, or `NAME` of the form `images`); each is mounted at its name. `extra` is
    configuration, as a line.
    """

    def __init__(self, registry, name, images, runtime="crun", slow=False, extra=""):
        self.addonfs = registry.addonfs
        self.folder = registry.work / "daemons" / name
        self.mount_point = self.folder / "mnt"
        self.clear()
        places = [image if "/" in image else f"images/{image}" for image in images]
        sources = "".join(
            f"  - {{name: {at.split('/')[1]}, type: oci, image: '{registry.source(at, slow)}', "
            f"mountPath: {at.split('/')[1]}}}\n"
            for at in places
        )
        self.config = self.folder / "addonfs.yaml"
        self.config.write_text(
            "policy:\n  profile: secure\n"
            f"  allowed_registries: ['{registry.host}', '{registry.slow_host}']\n"
            f"  trust: {{keys: ['{registry.work}/cosign.pub']}}\n"
            f"jobs: {{runtime: {shutil.which(runtime)}}}\n{extra}\nsources:\n{sources}"
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
