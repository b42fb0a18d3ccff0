"""docs/benchmarks.svg: seconds from nothing to a job's first output. A row a system, a column a link, a log scale."""

import math
from html import escape

from figures import median

ROW, HEAD, NAMES, PANEL, GAP, FOOT = 17, 26, 168, 330, 66, 34
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
LOW, HIGH = 0.07, 80
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .quiet { fill: #6e7781 } .head { font-weight: 600 } .end { text-anchor: end } .middle { text-anchor: middle }
  .grid { stroke: #d0d7de } .stem { stroke: #afb8c1; stroke-width: 3 } .peer { fill: #6e7781 }
  .ours { fill: #0969da } .stem.own { stroke: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .quiet { fill: #8b949e } .grid { stroke: #30363d } .stem { stroke: #484f58 }
    .peer { fill: #8b949e } .ours { fill: #58a6ff } .stem.own { stroke: #58a6ff }
  }
"""


def _at(panel, seconds):
    share = math.log(min(max(seconds, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
    return NAMES + panel * (PANEL + GAP) + share * PANEL


def _text(x, y, words, kind=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{escape(words)}</text>'


def plot(path, works, links, systems, taken):
    """Writes it: `works` are (name, words), `taken` has runs (seconds first) by (link, work, system)."""
    shown = [
        (name, words, [system for system in systems if any((link, name, system) in taken for link in links)])
        for name, words in works
    ]
    height = HEAD + sum(ROW * len(found) + HEAD for _, _, found in shown) + FOOT
    width = NAMES + len(links) * (PANEL + GAP)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
             f"<style>{STYLE}</style>"]  # fmt: skip
    for panel, link in enumerate(links):
        lines.append(_text(_at(panel, LOW), 16, link, "head"))
        for tick in TICKS:
            x = _at(panel, tick)
            lines.append(f'<path d="M{x:.0f} {HEAD}V{height - FOOT}" class="grid"/>')
            lines.append(_text(x, height - FOOT + 16, f"{tick:g}", "quiet middle"))
    y = HEAD
    for name, words, found in shown:
        y += HEAD
        lines.append(_text(0, y - 8, words, "head"))
        for system in found:
            y += ROW
            own = system.startswith("addonfs")
            lines.append(_text(NAMES - 10, y - 5, system, "end" if own else "end quiet"))
            for panel, link in enumerate(links):
                if runs := taken.get((link, name, system)):
                    seconds = median([run[0] for run in runs])
                    x = _at(panel, seconds)
                    kind = "stem own" if own else "stem"
                    lines.append(f'<path d="M{_at(panel, LOW):.0f} {y - 9}H{x:.0f}" class="{kind}"/>')
                    lines.append(f'<circle cx="{x:.0f}" cy="{y - 9}" r="4" class="{"ours" if own else "peer"}"/>')
                    lines.append(_text(x + 8, y - 5, f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}"))
    below = "seconds to the first byte of output, nothing cached, medians; log scale"
    lines.append(_text(NAMES, height - 4, below, "quiet"))
    path.write_text("\n".join([*lines, "</svg>"]) + "\n")
