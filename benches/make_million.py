"""Makes an image of a million entries, as an OCI layout: make_million.py FOLDER.

One layer of tar+gzip, written as a stream: no file system has to hold the tree. 20,000 directories at a depth of four
with 49 files each; every fifth file has a few bytes.
"""

import gzip
import hashlib
import io
import json
import pathlib
import sys
import tarfile

DIRECTORIES, FILES = 20_000, 49


class Hashing(io.RawIOBase):
    """A file whose content is hashed while it is written."""

    def __init__(self, below):
        self.below, self.hash = below, hashlib.sha256()

    def writable(self):
        return True

    def write(self, data):
        self.hash.update(data)
        self.below.write(data)
        return len(data)


def entry(name, kind, size=0):
    """A header."""
    header = tarfile.TarInfo(name)
    header.type, header.size, header.mode = kind, size, 0o755 if kind == tarfile.DIRTYPE else 0o644
    return header


def entries():
    """Headers with their content, parents first."""
    known = set()
    for number in range(DIRECTORIES):
        parts = ["million", f"area-{number // 2000}", f"part-{number // 100}", f"folder-{number}"]
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if path not in known:
                known.add(path)
                yield entry(path, tarfile.DIRTYPE), b""
        for file in range(FILES):
            content = b"%d of %d\n" % (file, number) if file % 5 == 0 else b""
            yield entry(f"{path}/entry_{file:02}.txt", tarfile.REGTYPE, len(content)), content


def write_layer(path):
    """Writes the compressed layer; the digest of what it decodes to."""
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        plain = Hashing(packed)
        with tarfile.open(fileobj=plain, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
            for header, content in entries():
                archive.addfile(header, io.BytesIO(content))
        return plain.hash.hexdigest()


def main(folder):
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    fresh = blobs / "layer"
    diff = write_layer(fresh)
    layer = put("layer.v1.tar+gzip", fresh.read_bytes())
    fresh.unlink()
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{diff}"]}
    config = put("config.v1+json", json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode())
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config}
    named = put("manifest.v1+json", json.dumps({**manifest, "layers": [layer]}).encode())
    named["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


main(pathlib.Path(sys.argv[1]))
