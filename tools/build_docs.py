"""Build the documentation site into site/, strictly: python tools/build_docs.py

`zensical build --strict` stops at a link, an anchor or a name that does not exist. It lets three things pass (0.0.73)
that are wrong too, so they are looked for here: a docstring that describes arguments its function does not have, a
picture that is not there, and a page that the navigation of mkdocs.yml does not list, or lists and is not there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS, SITE = ROOT / "docs", ROOT / "site"


def pages(nav: Any) -> Iterator[str]:
    """The files that a navigation names; addresses on the web are left out."""
    if isinstance(nav, str):
        yield from [] if "://" in nav else [nav]
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(entry)


def missing_pictures() -> Iterator[str]:
    for page in sorted(SITE.rglob("*.html")):
        for source in re.findall(r'<img\b[^>]*?\bsrc="?([^"\s>]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:|//", source) and not (page.parent / source).exists():
                yield f"{page.relative_to(SITE)}: there is no picture {source}"


def main() -> int:
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    run = subprocess.run(
        build,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    faults = [line for line in run.stdout.splitlines() if line.startswith("griffe: ")]
    print(*(line for line in run.stdout.splitlines() if line not in faults), sep="\n")
    if run.returncode:
        return run.returncode
    listed = set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    faults += [f"mkdocs.yml: the navigation does not list docs/{name}" for name in sorted(written - listed)]
    faults += [f"mkdocs.yml: there is no docs/{name}" for name in sorted(listed - written)]
    faults += missing_pictures()
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(faults)} faults" if faults else "the site is in site/: open site/index.html")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
