"""For the API reference (mkdocs.yml): examples in docstrings as code, and what pydantic's fields say as their text.

A docstring's example begins with `>>>` and needs no heading, which Markdown would take for a quotation. A field's text
and default stand in `Field(default, description=...)`.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

# A paragraph that begins with >>>, at any indentation.
EXAMPLE = re.compile(r"^([ ]*)>>> .*(?:\n(?![ ]*\n|[ ]*$).*)*", flags=re.MULTILINE)


def fenced(match: re.Match[str]) -> str:
    indent = match[1]
    return f"{indent}```pycon\n{match[0]}\n{indent}```"


class Readable(griffe.Extension):
    """Changes docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring and "```" not in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        value = attr.value
        if not isinstance(value, griffe.ExprCall) or str(value.function) != "Field":
            return
        for argument in value.arguments:
            if isinstance(argument, griffe.ExprKeyword) and argument.name == "description" and not attr.docstring:
                attr.docstring = griffe.Docstring(str(ast.literal_eval(str(argument.value))), parent=attr)
        first = value.arguments[0] if value.arguments else None
        attr.value = None if isinstance(first, griffe.ExprKeyword) else first
