"""Run a notebook's code and write what it shows into it: python tools/notebook.py examples/first_ticket.ipynb

The cells run in one process, in their order, as plain Python; a cell shows what it prints, the value of its last
expression and its figures. Jupyter shows the same, but a cell that was run here also says of which source its outputs
are, so that a test knows them for old after the source has changed.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot


def digest(cell: dict[str, Any]) -> str:
    """Of a cell's source; a cell that was run has it in its metadata."""
    return hashlib.sha256("".join(cell["source"]).encode()).hexdigest()[:16]


def shown(value: Any) -> dict[str, list[str]]:
    """A value as Jupyter shows it: its text, and its table where it has one."""
    found = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        found["text/html"] = value._repr_html_().splitlines(keepends=True)
    return found


def pictures() -> list[dict[str, Any]]:
    """The figures that are open, as outputs; closes them."""
    outputs = []
    for number in pyplot.get_fignums():
        file = io.BytesIO()
        pyplot.figure(number).savefig(file, format="png", bbox_inches="tight", metadata={"Software": None})
        image = base64.b64encode(file.getvalue()).decode()
        outputs.append(
            {"output_type": "display_data", "metadata": {}, "data": {"image/png": image, "text/plain": ["<Figure>"]}}
        )
    pyplot.close("all")
    return outputs


def run_cell(cell: dict[str, Any], count: int, names: dict[str, Any]) -> None:
    """Run a cell among the names of those before it, and give it its outputs."""
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    value, printed, outputs = None, io.StringIO(), []
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"<cell {count}>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"<cell {count}>", "eval"), names)
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        outputs.append(
            {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": shown(value)}
        )
    cell.update(execution_count=count, outputs=outputs + pictures(), metadata={"source": digest(cell)})


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run a notebook's code cells; returns the names they leave."""
    pyplot.switch_backend("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    with pyplot.rc_context():
        for count, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), start=1):
            run_cell(cell, count, names)
    return names


def main(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
