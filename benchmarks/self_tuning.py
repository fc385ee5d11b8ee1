"""Tables and traces of self-tuning: python benchmarks/self_tuning.py results/self-tuning{,-resnet,-traces}

Reads files of records only: `gemminer compare` keeps one, and `gemminer.runs.archive.from_folders` makes one with the
rows of the searches, which the traces and the table of falls are from. In each setting the best fixed lambda is the one
with the highest mean *validation* accuracy after training; what is compared are test accuracies, means and standard
deviations over seeds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemminer.runs import archive
from gemminer.runs.archive import Entry
from gemminer.runs.record import Record

Row = Mapping[str, Any]
Key = tuple[str, str, float]
LEFT, WIDTH, TOP, HEIGHT, GAP = 60, 330, 64, 220, 70
SERIES = {"validation": ("live network, validation", "#0b5cad"), "live": ("live weights", "#b35900")}


def read(folder: Path) -> list[Entry]:
    """The cells that are finished, by digest."""
    found = archive.read(folder / archive.NAME).entries
    return [found[digest] for digest in sorted(found) if found[digest].record is not None]


def records(entries: Iterable[Entry]) -> list[Record]:
    return [entry.record for entry in entries if entry.record is not None]


def label(record: Record) -> str:
    """The options that are not the default, as they are asked for."""
    options = record.recipe.get("options", {})
    return " ".join(f"{name}={value}" for name, value in options.items()) or "self-tuned"


def settings(records: Iterable[Record]) -> dict[Key, dict[str, list[Record]]]:
    found: dict[Key, dict[str, list[Record]]] = {}
    for record in records:
        key = (record.model, record.data, record.density.asked)
        found.setdefault(key, {}).setdefault(label(record), []).append(record)
    return dict(sorted(found.items()))


def values(records: Iterable[Record], name: str) -> list[float]:
    return [100 * getattr(record.accuracy, name) for record in records]


def spread(numbers: list[float]) -> str:
    return f"{statistics.fmean(numbers):.1f}" + (f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else "")


def against_fixed(found: dict[Key, dict[str, list[Record]]]) -> str:
    """A row a setting: self-tuned, the best fixed lambda, every fixed one; and how often the first is at or above."""
    lines = [
        "| network, data, density | self-tuned: before / after | best fixed lambda: before / after | its lambda "
        "| all four, after | n |",
        "|---|---|---|---|---|---|",
    ]
    after = before = count = 0
    for (model, data, density), arms in found.items():
        fixed = {name: rows for name, rows in arms.items() if name.startswith("ridge=") and " " not in name}
        if len(fixed) < 4 or "self-tuned" not in arms:
            continue
        best = max(fixed, key=lambda name: statistics.fmean(values(fixed[name], "validation")))
        own, other = arms["self-tuned"], fixed[best]
        means = [statistics.fmean(values(rows, name)) for rows in (own, other) for name in ("before", "after")]
        count += 1
        before += means[0] > means[2]
        after += means[1] >= means[3] - 0.2
        every = ", ".join(
            f"{statistics.fmean(values(rows, 'after')):.1f}"
            for _, rows in sorted(fixed.items(), key=lambda item: float(item[0].removeprefix("ridge=")))
        )
        pair = [f"{spread(values(rows, 'before'))} / {spread(values(rows, 'after'))}" for rows in (own, other)]
        name = f"{model}, {data}, {density:g}"
        lines.append(f"| {name} | {pair[0]} | {pair[1]} | {best.removeprefix('ridge=')} | {every} | {len(own)} |")
    lines.append(f"\nBefore: above in {before} of {count}. After: at or above, less 0.2 points, in {after} of {count}.")
    return "\n".join(lines)


def parts(found: dict[Key, dict[str, list[Record]]]) -> str:
    """What each part is worth: every arm of the settings in which single parts were changed."""
    lines = ["| network, data, density | arm | before | after | n |", "|---|---|---|---|---|"]
    for (model, data, density), arms in found.items():
        if not any(name.startswith(("slack", "scale", "start")) or " " in name for name in arms):
            continue
        for name, rows in sorted(arms.items(), key=lambda item: -statistics.fmean(values(item[1], "before"))):
            cells = [spread(values(rows, which)) for which in ("before", "after")]
            lines.append(f"| {model}, {data}, {density:g} | {name} | {cells[0]} | {cells[1]} | {len(rows)} |")
    return "\n".join(lines)


def checks(found: dict[Key, dict[str, list[Record]]]) -> str:
    """The ticket against its shuffled mask."""
    lines = ["| network, data, density | arm | before | after | shuffled | ticket better by | n |", "|---" * 7 + "|"]
    for (model, data, density), arms in found.items():
        for name, rows in arms.items():
            shuffled = [100 * r.checks["shuffle"].mean for r in rows if "shuffle" in r.checks]
            better = [a - b for a, b in zip(values(rows, "after"), shuffled, strict=True)] if shuffled else []
            cells = [spread(values(rows, "before")), spread(values(rows, "after"))]
            cells += [spread(shuffled), spread(better)] if shuffled else ["", ""]
            lines.append(f"| {model}, {data}, {density:g} | {name} | {' | '.join(cells)} | {len(rows)} |")
    return "\n".join(lines)


def worst_fall(rows: Sequence[Row]) -> float:
    """The most points that validation falls below its best so far, after the first fifth of the search."""
    best = fall = 0.0
    for i, row in enumerate(rows):
        if i >= len(rows) / 5:
            fall = max(fall, best - row["validation"])
        best = max(best, row["validation"])
    return 100 * fall


def picture(found: Sequence[tuple[str, Sequence[Row]]], title: str) -> str:
    """A panel a search, as SVG: validation of the live network, and live weights on a scale of their own (log)."""
    width = LEFT + (WIDTH + GAP) * len(found)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 60}" font-size="13" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{title}">'
        '<rect width="100%" height="100%" fill="#ffffff"/>'
        f'<text x="16" y="26" font-size="16" font-weight="600">{title}</text>'
    ]
    for at, (name, rows) in enumerate(found):
        x0, last = LEFT + (WIDTH + GAP) * at, max(1, len(rows) - 1)
        out.append(f'<text x="{x0}" y="{TOP - 12}" font-weight="600">{name}</text>')
        for tick in range(0, 101, 20):
            y = TOP + HEIGHT * (1 - tick / 100)
            out.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y}" y2="{y}" stroke="#e2e2e2"/>')
            out.append(f'<text x="{x0 - 8}" y="{y + 4}" text-anchor="end" fill="#555">{tick}%</text>')
        for series, (_, colour) in SERIES.items():
            points = " ".join(
                f"{x0 + WIDTH * i / last:.1f},{TOP + HEIGHT * (1 - row[series]):.1f}" for i, row in enumerate(rows)
            )
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        text = f"epochs 1 to {len(rows)}; worst fall {worst_fall(rows):.1f} points"
        out.append(f'<text x="{x0}" y="{TOP + HEIGHT + 20}" fill="#555">{text}</text>')
    for i, (text, colour) in enumerate(SERIES.values()):
        out.append(f'<text x="{LEFT + 210 * i}" y="{TOP + HEIGHT + 46}" fill="{colour}">{text}</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    grid, resnet, traced = (read(Path(folder)) for folder in sys.argv[1:4])
    found = settings(records(grid))
    print(against_fixed(found), parts(found), checks(settings(records(resnet))), sep="\n\n")
    falls: dict[tuple[Key, str], list[float]] = {}
    for entry in (*grid, *resnet):
        if entry.record is not None and entry.curves:
            record = entry.record
            key = (record.model, record.data, record.density.asked)
            falls.setdefault((key, label(record)), []).append(worst_fall(entry.curves))
    print("\n| network, data, density | arm | worst fall after the first fifth, points | n |\n|---|---|---|---|")
    for (key, name), fall in sorted(falls.items()):
        if name == "self-tuned" or key[1] == "fashion-mnist":
            print(f"| {key[0]}, {key[1]}, {key[2]:g} | {name} | {spread(fall)} | {len(fall)} |")
    traces = [(label(entry.record), entry.curves) for entry in traced if entry.record is not None and entry.curves]
    title = "ResNet-20, digits, 1.44% kept: the live network through the search"
    Path("docs/self-tuning.svg").write_text(
        picture(sorted(traces, key=lambda trace: trace[0]), title), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
