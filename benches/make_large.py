"""Makes a file whose reads are timed, half of it incompressible: make_large.py FILE MEBIBYTES."""

import random
import sys

MIB = 1 << 20

with open(sys.argv[1], "wb") as file:
    dice = random.Random(21)
    for number in range(int(sys.argv[2])):
        file.write(dice.randbytes(MIB // 2) + (b"row %08d of the data\n" % number * 30_000)[: MIB // 2])
