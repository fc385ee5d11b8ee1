"""Picture and table of a comparison: python benchmarks/comparison_result.py results/X/summary.csv docs/x.svg "Title"

A panel for each (network, density), a row for each method: accuracy before training (ring) and after (dot) with the
standard deviation over seeds, the dense network as a line.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str]
LEFT, WIDTH, STEP, TOP = 190, 250, 24, 76
SEEN_TRAINED = ("imp",)  # methods that see trained weights


def percent(row: Row, name: str) -> str:
    return f"{100 * float(row[name]):.1f}" + (f" ± {100 * float(row[name + '_std']):.1f}" if row[name + "_std"] else "")


def check(row: Row, name: str) -> str:
    if not row.get(f"{name}_verdict"):
        return ""
    difference, std = (100 * float(row[f"{name}_{part}"]) for part in ("difference", "std"))
    return f"{difference:+.1f} ± {std:.1f}, {row[f'{name}_verdict']}"


def table(rows: Sequence[Row], checks: Sequence[str]) -> str:
    lines = [
        "| method | n | before, % | after, % | search, epochs | "
        + " | ".join(f"better than {c}" for c in checks)
        + " |",
        "|---" * (5 + len(checks)) + "|",
    ]
    for row in rows:
        cells = [row["method"], row["n"], percent(row, "before"), percent(row, "after")]
        cells += [f"{float(row['search_epochs']):.3g}", *(check(row, name) for name in checks)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def panel(rows: Sequence[Row], order: Sequence[str], dense: float, title: str, x0: float) -> list[str]:
    def x(value: float) -> float:
        return x0 + WIDTH * value

    bottom = TOP + STEP * len(order)
    parts = [f'<text x="{x0}" y="{TOP - 22}" font-weight="600">{title}</text>']
    for tick in range(0, 101, 25):
        at = x(tick / 100)
        parts.append(f'<line x1="{at}" x2="{at}" y1="{TOP - 8}" y2="{bottom}" stroke="#e2e2e2"/>')
        parts.append(f'<text x="{at}" y="{bottom + 18}" text-anchor="middle" fill="#555555">{tick}</text>')
    parts.append(
        f'<line x1="{x(dense)}" x2="{x(dense)}" y1="{TOP - 8}" y2="{bottom}" stroke="#333" stroke-dasharray="4 3"/>'
    )
    for row in rows:
        y = TOP + STEP * order.index(row["method"]) + STEP / 2 - 4
        colour = (
            "#0b5cad"
            if row["method"] == "gem-miner"
            else "#b35900"
            if row["method"].startswith(SEEN_TRAINED)
            else "#555"
        )
        for name, filled in (("before", False), ("after", True)):
            mean, std = float(row[name]), float(row[f"{name}_std"] or 0)
            parts.append(f'<path d="M{x(max(0, mean - std)):.1f} {y}H{x(min(1, mean + std)):.1f}" stroke="{colour}"/>')
            fill = colour if filled else "#ffffff"
            parts.append(
                f'<circle cx="{x(mean):.1f}" cy="{y}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
            )
    return parts


def picture(rows: Sequence[Row], title: str) -> str:
    """As SVG: no plotting library draws static pictures without a browser."""
    keys = sorted({(r["model"], float(r["density"])) for r in rows if r["method"] != "dense"})
    last = [r for r in rows if (r["model"], float(r["density"])) == keys[0]]
    order = [r["method"] for r in sorted(last, key=lambda r: -float(r["after"]))]
    order += sorted({r["method"] for r in rows if r["method"] != "dense"} - set(order))
    width, height = LEFT + (WIDTH + 36) * len(keys), TOP + STEP * len(order) + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" '
        f'font-size="13" role="img" aria-label="{title}"><rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600">{title}</text>',
        f'<text x="16" y="{height - 14}" fill="#555555">Test accuracy, %: ring before any training, dot after; bars: '
        "standard deviation over seeds; dashed: dense network. Blue: Gem-Miner; orange: sees trained weights.</text>",
    ]
    for i, method in enumerate(order):
        parts.append(f'<text x="{LEFT - 14}" y="{TOP + STEP * i + STEP / 2}" text-anchor="end">{method}</text>')
    for i, (model, density) in enumerate(keys):
        own = [r for r in rows if (r["model"], float(r["density"])) == (model, density)]
        dense = next((float(r["after"]) for r in rows if r["method"] == "dense" and r["model"] == model), 1.0)
        parts += panel(own, order, dense, f"{model}, {100 * density:g}% kept", LEFT + (WIDTH + 36) * i)
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    source, target, title = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    target.write_text(picture(rows, title), encoding="utf-8")
    checks = [name.removesuffix("_verdict") for name in rows[0] if name.endswith("_verdict")]
    for key in sorted({(r["model"], float(r["density"])) for r in rows}):
        own = [r for r in rows if (r["model"], float(r["density"])) == key]
        print(f"\n{key[0]}, density {key[1]:g}\n\n{table(sorted(own, key=lambda r: -float(r['after'])), checks)}")


if __name__ == "__main__":
    main()
