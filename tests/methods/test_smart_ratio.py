"""Smart ratios by hand."""

from __future__ import annotations

import pytest

from gemminer.core.errors import UsageError
from gemminer.methods import smart_ratio
from tests.methods.oracles import kept


def test_smart_ratio_by_hand() -> None:
    """L = 4: (L-l+1)^2 + (L-l+1) = 20, 12, 6, 2; the classifier keeps 0.3 of 100, the rest 360, 864, 2160 parts."""
    assert smart_ratio.smart_ratios(4) == [20, 12, 6, 2]
    assert kept("smart-ratio", (30 + 94) / 550) == [10, 24, 60, 30]  # 94 * 360 / 3384 = 10, 24, 60
    # 197 would ask 20.96 of the first 18: full, and 179 go as 864 : 2160 to the others.
    assert kept("smart-ratio", (30 + 197) / 550) == [18, 51, 128, 30]  # 51.14, 127.86
    assert kept("smart-ratio", 1.0) == [18, 72, 360, 100]
    # Divided by l^2: 20, 3, 2/3 of 18, 72, 360 = 360 : 216 : 240; 34 parts of 24 = 15, 9, 10.
    assert kept("smart-ratio", (30 + 34) / 550, shape="vgg") == [15, 9, 10, 30]
    # Upside down, 2, 6, 12 and the classifier's 20: 36 : 432 : 4320.
    assert kept("smart-ratio", (30 + 133) / 550, invert=True) == [1, 12, 120, 30]
    # Without a share of its own the classifier has ratio 2: 360 : 864 : 2160 : 200.
    assert kept("smart-ratio", 112 / 550, classifier=0.0) == [11, 27, 68, 6]  # 11.25, 27, 67.5, 6.25


def test_the_vgg_shape_upside_down_rises_with_depth() -> None:
    """Reversed, 2/16, 6/9, 12/4 of 18, 72, 360 = 2.25 : 48 : 1080; the source's ascending 2, 3/2, 4/3 would fall."""
    assert kept("smart-ratio", (30 + 226) / 550, shape="vgg", invert=True) == [0, 10, 216, 30]  # 0.45, 9.59, 215.96


def test_smart_ratio_says_when_the_classifier_alone_is_too_much() -> None:
    with pytest.raises(UsageError, match="classifier"):
        kept("smart-ratio", 25 / 550)
