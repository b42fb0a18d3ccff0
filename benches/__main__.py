"""Measures addonfs beside its peers: python3 benches [--quick] [name...]. scripts/bench starts it, and sets it up."""

import argparse
import os
import pathlib
import re
import sys

from filesystem import read, walk
from foreground import foreground
from job import job
from layers import layers
from many import many
from process import million, remount, steady
from prepare import nydus, optimized
from report import keep, table, write
from services import Registry
from start import start
from trees import forms

MEASURES = {
    "walk": walk, "read": read, "remount": remount, "job": job, "start": start, "forms": forms, "layers": layers,
    "million": million, "steady": steady, "foreground": foreground, "many": many,
}  # fmt: skip


class Bench:
    """What every measure needs."""

    def __init__(self, given, registry):
        self.work, self.document, self.quick, self.only = given.work, given.document, given.quick, given.only
        self.registry = registry
        self.here = pathlib.Path(__file__).parent

    def rounds(self, full):
        """How many rounds to take."""
        return max(min(2, full), full // 4) if self.quick else full

    def unpacked(self, image):
        """The image as umoci unpacked it on ext4."""
        return self.work / "unpacked" / image / "rootfs"


def main():
    words = argparse.ArgumentParser(prog="scripts/bench", description="Measures addonfs beside its peers.")
    words.add_argument("--quick", action="store_true", help="a quarter of the rounds")
    words.add_argument("--only", type=re.compile, metavar="REGEX",
                       help="of `start`: what of 'link, work, system' matches; the rest stays")  # fmt: skip
    words.add_argument("name", nargs="*", help=f"what to measure: {', '.join(MEASURES)} (default: all)")
    words.add_argument("--work", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    words.add_argument("--addonfs", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    words.add_argument("--document", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    given = words.parse_args()
    unknown = set(given.name) - set(MEASURES)
    if unknown:
        words.error(f"unknown: {', '.join(unknown)}")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missed = 0
    with Registry(given.work, given.addonfs) as registry:
        bench = Bench(given, registry)
        optimized(bench), nydus(bench)
        for name in given.name or MEASURES:
            print(f"# {name}", flush=True)
            found = MEASURES[name](bench)
            rows, tables = found if isinstance(found, tuple) else (found, [])
            keep(given.work, name, rows, tables, given.quick)
            for row in rows:
                missed += not row.met
                verdict = ("met" if row.met else "MISSED") if row.target else ""
                print(f"{row.what}: {row.ours} | {row.peer} | {row.relation} | {row.target} {verdict}", flush=True)
    write(given.document, table(given.work, MEASURES))
    return 1 if missed else 0


sys.exit(main())
