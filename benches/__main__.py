"""Measures addonfs beside its peers: python3 benches [--quick] [name...]. Started by scripts/bench, which sets it up."""

import argparse
import os
import pathlib
import sys

from cold import cold
from filesystem import read, walk
from job import job
from process import remount, steady
from report import keep, table, write
from services import Registry

MEASURES = {"walk": walk, "read": read, "remount": remount, "job": job, "cold": cold, "steady": steady}


class Bench:
    """What every measure needs."""

    def __init__(self, work, registry, quick):
        self.work, self.registry, self.quick = work, registry, quick
        self.here = pathlib.Path(__file__).parent

    def rounds(self, full):
        """How many rounds to take."""
        return max(2, full // 4) if self.quick else full

    def unpacked(self, image):
        """The image as umoci unpacked it on ext4."""
        return self.work / "unpacked" / image / "rootfs"


def main():
    words = argparse.ArgumentParser(prog="scripts/bench", description="Measures addonfs beside its peers.")
    words.add_argument("--quick", action="store_true", help="a quarter of the rounds")
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
        bench = Bench(given.work, registry, given.quick)
        for name in given.name or MEASURES:
            print(f"# {name}", flush=True)
            rows = MEASURES[name](bench)
            keep(given.work, name, rows, given.quick)
            for row in rows:
                missed += not row.met
                verdict = ("met" if row.met else "MISSED") if row.target else ""
                print(f"{row.what}: {row.ours} | {row.peer} | {row.relation} | {row.target} {verdict}", flush=True)
    write(given.document, table(given.work, MEASURES))
    return 1 if missed else 0


sys.exit(main())
