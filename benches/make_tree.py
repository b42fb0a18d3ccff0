"""Makes the tree of 30,000 files: make_tree.py DIRECTORY.

Sizes are drawn from a log-normal distribution (median 2.2 kB, mean about 9 kB), which is what the files of an
installed system look like; names and depths are those of packages. The seed is fixed: every run makes the same tree.
"""

import os
import random
import sys

FILES = 30_000
WORDS = "core util test data index module config schema client server cache entry layer table parser writer".split()


def content(dice, size):
    """Half of it compresses well, half does not, as in a mix of text and programs."""
    line = b"%032x = value of a configuration line\n" % dice.getrandbits(128)
    text = line * (size // 2 // len(line))
    return text + dice.randbytes(size - len(text))


def main(root):
    dice = random.Random(20)
    made = 0
    while made < FILES:
        depth = dice.randint(2, 6)
        folder = os.path.join(root, *(f"{dice.choice(WORDS)}-{dice.randint(0, 7)}" for _ in range(depth)))
        os.makedirs(folder, exist_ok=True)
        for _ in range(min(dice.randint(1, 24), FILES - made)):
            size = min(int(dice.lognormvariate(7.7, 1.7)), 2_000_000)
            with open(os.path.join(folder, f"{dice.choice(WORDS)}_{made}.py"), "wb") as file:
                file.write(content(dice, size))
            made += 1


main(sys.argv[1])
