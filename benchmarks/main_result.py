"""The README's picture and table from the records of `make mine`: python benchmarks/main_result.py FILE ...

FILE is a record.json or a file of records, results/X/records.jsonl.gz. Each seed is one run; what is shown is the mean
and standard deviation over seeds.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from gemminer.runs import archive, record
from gemminer.runs.record import Record

LABELS = {
    "shuffle": "mask shuffled in each layer",
    "reinit": "weights drawn anew",
    "invert": "search upside down",
    "uniform": "random, uniform",
    "erk": "random, ERK",
}


def read(path: str) -> list[Record]:
    return list(archive.read(path).records.values()) if path.endswith(".gz") else [record.read(path)]


def rows(records: list[Record]) -> list[tuple[str, float, float, float | None, float | None]]:
    """(label, mean, std, mean and std of ticket minus it over seeds)."""
    found: list[tuple[str, float, float, float | None, float | None]] = []

    def add(label: str, values: list[float], differences: list[float] | None = None) -> None:
        pair = (statistics.mean(differences), statistics.stdev(differences)) if differences else (None, None)
        found.append((label, statistics.mean(values), statistics.stdev(values), *pair))

    add("gem, before any training", [r.accuracy.before for r in records])
    add("gem, trained", [r.accuracy.after for r in records])
    add("dense network, trained", [r.accuracy.dense for r in records])
    for name, label in LABELS.items():
        add(
            label,
            [r.checks[name].mean for r in records],
            [r.checks[name].difference for r in records],
        )
    return found


def table(found: list[tuple[str, float, float, float | None, float | None]]) -> str:
    lines = ["| | test accuracy, % | gem better by, points |", "|---|---|---|"]
    for label, mean, std, difference, spread in found:
        better = "" if difference is None or spread is None else f"{100 * difference:+.1f} ± {100 * spread:.1f}"
        lines.append(f"| {label} | {100 * mean:.1f} ± {100 * std:.1f} | {better} |")
    return "\n".join(lines)


def picture(found: list[tuple[str, float, float, float | None, float | None]], title: str) -> str:
    """A bar chart as SVG: no plotting library draws static pictures without a browser."""
    left, width, step, top = 230, 430, 34, 58
    height = top + step * len(found) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 110} {height}" '
        f'font-family="system-ui, sans-serif" font-size="14" role="img" aria-label="{title}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="17" font-weight="600">{title}</text>',
    ]
    for tick in range(0, 101, 20):
        x = left + width * tick / 100
        parts.append(f'<line x1="{x}" x2="{x}" y1="{top - 8}" y2="{height - 30}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x}" y="{height - 12}" text-anchor="middle" fill="#555555">{tick}%</text>')
    for i, (label, mean, std, *_) in enumerate(found):
        y, end = top + step * i, left + width * mean
        colour = "#0b5cad" if i < 2 else "#444444" if i == 2 else "#b8b8b8"
        parts.append(f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{label}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{width * mean:.1f}" height="20" fill="{colour}"/>')
        low, high = end - width * std, end + width * std
        parts.append(
            f'<path d="M{low:.1f} {y + 10}H{high:.1f}M{low:.1f} {y + 5}v10M{high:.1f} {y + 5}v10" stroke="#111111"/>'
        )
        parts.append(f'<text x="{max(end, high) + 8:.1f}" y="{y + 15}">{100 * mean:.1f} ± {100 * std:.1f}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    records = [found for path in sys.argv[1:] for found in read(path)]
    found = rows(records)
    density = records[0].density
    title = f"ResNet-20 on digits, {density.kept:,} of {density.prunable:,} weights kept, {len(records)} seeds"
    Path("docs/main-result.svg").write_text(picture(found, title), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
