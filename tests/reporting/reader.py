"""The page as a browser's parser reads it, and names that would do harm in it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from gemminer.reporting.page import PLOTLY as SCRIPT

PLOTLY = SCRIPT.read_text(encoding="utf-8")


class Page(HTMLParser):
    """A page as a browser's parser sees it: elements with their attributes, and the text outside scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._inside: list[str] | None = self.words
        whole = path.read_text(encoding="utf-8")
        assert whole.count(PLOTLY) == 1
        self.feed(whole.replace(PLOTLY, ""))  # a million characters that would only cost time
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "script":
            self.scripts.append("")
        self._inside = self.scripts if tag == "script" else None if tag == "style" else self.words

    def handle_endtag(self, tag: str) -> None:
        self._inside = self.words

    def handle_data(self, data: str) -> None:
        if self._inside is self.scripts:
            self.scripts[-1] += data
        elif self._inside is not None:
            self._inside.append(data)

    def figures(self) -> dict[str, Any]:
        """The charts' data: the first script, which must be JSON that nothing had to be taken out of."""
        return dict(json.loads(self.scripts[0]))


HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert(2)">'"{{ 7 * 7 }}&amp;<b>%{x}"""
