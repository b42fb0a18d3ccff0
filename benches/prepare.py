"""Peers' own forms of the images, made once and kept in the registry: what `benches/images` cannot make without one."""

import json
import shutil
import subprocess
import urllib.request

from machine import run
from start import HELLO, JSON, PANDAS
from systems import Stargz, nydusd

# An image can be optimized for one workload.
WORKLOADS = {"small": HELLO, "tools": JSON, "science": PANDAS}


def optimized(bench):
    """The eStargz images with the files of a recorded workload first, as `ctr-remote images optimize` makes them."""
    registry = bench.registry
    known = registry.digests
    missing = [image for image in WORKLOADS if f"estargz/{image}" in known and f"optimized/{image}" not in known]
    if not missing:
        return
    peer = Stargz(bench, "optimize", "estargz")
    try:
        peer.start()
        for image in missing:
            print(f"images: optimized/{image}", flush=True)
            plain, better = (registry.reference(f"{form}/{image}") for form in ("estargz", "optimized"))
            remote = ["ctr-remote", "--address", peer.socket, "images"]
            workload = json.dumps(WORKLOADS[image].argv)
            run(*remote, "pull", "--plain-http", plain)
            run(*remote, "optimize", "--oci", "--period", "5", "--args", workload, plain, better)
            run(*remote, "push", "--plain-http", better)
            registry.note(f"optimized/{image}", registry.manifest_digest(f"optimized/{image}"))
    finally:
        peer.end()


def nydus(bench):
    """nydus' own form of the unpacked images, put into the registry as blobs; nothing without `nydus-image`."""
    registry = bench.registry
    maker = nydusd(bench).with_name("nydus-image")
    if not maker.exists():
        return
    for image in ("tools", "science"):
        if f"nydus/{image}" in registry.digests:
            continue
        print(f"images: nydus/{image}", flush=True)
        folder = bench.work / "forms" / f"nydus-{image}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        run(maker, "create", "--type", "dir-rafs", "--bootstrap", folder / "boot", "--blob-dir", folder,
            bench.unpacked(image))  # fmt: skip
        digests = {path.name: upload(registry.host, f"nydus/{image}", path) for path in folder.iterdir()}
        registry.note(f"nydus/{image}", digests["boot"])


def upload(host, repository, path):
    """Puts a file into a registry as a blob; its digest."""
    digest = "sha256:" + run("sha256sum", path).split()[0]
    begin = urllib.request.Request(f"http://{host}/v2/{repository}/blobs/uploads/", method="POST")
    with urllib.request.urlopen(begin) as answer:
        place = answer.headers["Location"]
    subprocess.run(["curl", "-sSf", "-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T", path,
                    f"{place}&digest={digest}"], check=True)  # fmt: skip
    return digest
