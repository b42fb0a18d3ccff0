"""The table of docs/benchmarks.md, between its markers, made of rows that are kept in the work directory."""

import json
import subprocess
import time
from dataclasses import asdict, dataclass

from machine import describe
from figures import median, quartiles

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass
class Row:
    """One line: what, both sides, their relation with its spread, and the target."""

    what: str
    ours: str
    peer: str
    relation: str
    target: str
    met: bool
    rounds: int


@dataclass
class Table:
    """Figures of many systems side by side, without targets."""

    title: str
    head: list
    lines: list

    def markdown(self):
        """As Markdown below its title."""
        rows = [self.head, ["---"] * len(self.head), *self.lines]
        return [f"**{self.title}**", "", *("| " + " | ".join(row) + " |" for row in rows), ""]


def milliseconds(values):
    """Median and quartiles of seconds, in ms."""
    low, high = quartiles(values)
    return f"{_short(median(values) * 1e3)} ms ({_short(low * 1e3)}–{_short(high * 1e3)})"


def mebibytes(values):
    """Median and quartiles of bytes, in MiB."""
    low, high = quartiles(values)
    return f"{median(values) / 2**20:.1f} MiB ({low / 2**20:.1f}–{high / 2**20:.1f})"


def ratio(values):
    """Median and quartiles of ratios."""
    low, high = quartiles(values)
    return f"{median(values):.2f}× ({low:.2f}–{high:.2f})"


def _short(number):
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.3f}"


def keep(work, measure, rows, tables, quick):
    """Keeps the figures of one measure beside those of other runs."""
    path = work / "results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[measure] = {
        "rows": [asdict(row) for row in rows], "tables": [asdict(table) for table in tables],
        "when": _when(), "quick": quick,
    }  # fmt: skip
    path.write_text(json.dumps(known, indent=1))


def _when():
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src"], check=False).returncode
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return f"{day}, {commit.stdout.strip()}{' with changes' if dirty else ''}"


def table(work, order):
    """All kept figures as Markdown: the rows with targets, then the tables."""
    path = work / "results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    lines = ["| what | addonfs | peer | relation | target | | n |", "|---|---|---|---|---|---|---|"]
    taken, tables = {}, []
    for measure in order:
        if measure not in known:
            continue
        kept = known[measure]
        taken.setdefault(kept["when"] + (", --quick" if kept["quick"] else ""), []).append(measure)
        for row in kept["rows"]:
            verdict = {True: "met", False: "**missed**"}[row["met"]] if row["target"] else ""
            cells = (row["what"], row["ours"], row["peer"], row["relation"], row["target"], verdict, row["rounds"])
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        tables += [Table(**kept) for kept in known[measure].get("tables", [])]
    lines += ["", *(line for table in tables for line in table.markdown())]
    lines += [f"{describe()}."]
    lines += [f"Taken {when}: {', '.join(measures)}." for when, measures in taken.items()]
    return "\n".join(lines)


def write(document, text):
    """Puts the table between the markers, below the plot if there is one."""
    picture = document.with_suffix(".svg")
    if picture.exists():
        text = f"![Seconds from nothing to a job's first output]({picture.name})\n\n{text}"
    before, rest = document.read_text().split(BEGIN)
    _, after = rest.split(END)
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
