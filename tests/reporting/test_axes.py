"""Figures as plotly.js takes them."""

from __future__ import annotations

import json
import math

from gemminer.reporting import axes


def test_a_figure_is_plain_json_without_numbers_that_are_none() -> None:
    figure = axes.new_figure(100, xaxis={"range": (0, math.inf)}, yaxis={"type": "log"})
    axes.add_line(figure, "a", [1, 2], [0.5, math.nan])
    axes.add_bars(figure, x=[1], y=[-math.inf])
    axes.add_mark(figure, 0.25, "var(--c0)")
    axes.add_text(figure, "here", x=1)
    shared = json.loads(axes.to_json(figure))
    assert [trace["type"] for trace in shared["data"]] == ["scatter", "bar"]
    assert [trace["y"] for trace in shared["data"]] == [[0.5, None], [None]]
    assert shared["layout"]["xaxis"]["range"] == [0, None]
    (mark,), (text,) = shared["layout"]["shapes"], shared["layout"]["annotations"]
    assert (mark["x0"], mark["x1"], mark["yref"], mark["layer"]) == (0.25, 0.25, "paper", "below")
    assert text == {"text": "here", "showarrow": False, "x": 1}
