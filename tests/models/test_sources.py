"""Networks of one's own and of other libraries by name: what they are given, and what cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemminer import models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.models import sources

NETS = """
import random
import numpy
import torch
from torch import nn

print("imported")
MADE = nn.Linear(2, 3)
NUMBER = 5

class Net(nn.Module):
    "Two layers. Of my own."
    def __init__(self, in_channels, num_classes=1000, *, img_size, hidden=8, width=3, pretrained=True):
        super().__init__()
        print("made")
        self.seen = (in_channels, num_classes, img_size, hidden, width, pretrained)
        self.drawn = (random.random(), numpy.random.rand())
        self.a = nn.Linear(in_channels * img_size**2, hidden)
        self.b = nn.Linear(hidden, num_classes)
    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu())

class Silent(nn.Module):
    def __init__(self, kind="one"):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(64, 10)

def needing(depth):
    return nn.Linear(depth, 10)

def any_option(**others):
    return nn.Linear(len(others), 10)

def raising():
    return MADE.nothing

def none():
    pass

def leaving():
    raise SystemExit(3)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module of networks."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "failing.py").write_text("\n\nunheard_of()\n")
    monkeypatch.chdir(tmp_path)
    for name in ("nets", "broken", "failing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def build(name: str, **options: Any) -> torch.nn.Module:
    return models.from_options(name, {"in_channels": 1, "classes": 10, "image_size": 8}, options)


def test_ones_own_is_given_the_sizes_that_it_takes_and_its_options(
    nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.path)
    net = build("nets:Net", hidden=16)
    assert net.seen == (1, 10, 8, 16, 3, True), "what its defaults are, it keeps"
    assert build("nets:Net", width=1.0, pretrained=False, num_classes=4).seen == (1, 4, 8, 8, 1.0, False)
    assert build("nets:Net", classes=4).seen[1] == 4
    assert build("nets:Silent", kind="two").kind == "two"
    assert build("nets:any_option", one=1, two=2).in_features == 2
    assert models.build("nets:Net", in_channels=2, image_size=4).a.in_features == 32
    assert sys.path == before
    printed = capsys.readouterr()
    assert printed.out == "", "stdout is for --json"
    assert "imported" in printed.err


def test_equal_arguments_give_equal_weights_and_leave_the_generators_alone(nets: Path) -> None:
    torch.manual_seed(3)
    state, numbers = torch.get_rng_state(), np.random.get_state()[2]  # noqa: NPY002
    first, again = build("nets:Net"), build("nets:Net")
    assert first.drawn == again.drawn
    assert all(torch.equal(w, again.state_dict()[key]) for key, w in first.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[2] == numbers  # noqa: NPY002


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("nets:Nat", {}, "the model 'nets:Nat' cannot be imported: module 'nets' has no attribute 'Nat'"),
        ("nowhere.at.all:Net", {}, "cannot be imported: No module named 'nowhere'"),
        ("broken:f", {}, r"cannot be imported: SyntaxError: .*broken.py, line 1"),
        ("failing:f", {}, r"NameError: name 'unheard_of' is not defined \(failing.py, line 3\)"),
        ("nets: Net", {}, "it is no package.module:name"),
        (":Net", {}, "it is no package.module:name"),
        ("nets:MADE", {}, "is a network that is made already: name its class"),
        ("nets:NUMBER", {}, "is a int, not a class or function that makes a torch.nn.Module"),
        ("nets:none", {}, "made a NoneType, which is no torch.nn.Module"),
        ("nets:raising", {}, r"cannot be made: AttributeError: .*'nothing' \(.*, line \d+\)"),
        ("nets:leaving", {}, "cannot be made: SystemExit: 3"),
        ("nets:needing", {}, "needs 'depth': give --model-option depth=VALUE"),
        (
            "nets:Net",
            {"heads": 2},
            "nets:Net has no option 'heads'; it has: in_channels, num_classes",
        ),
        ("timm:", {}, "timm: names no network: write timm:NAME"),
        ("resnet21", {}, "unknown model 'resnet21'; did you mean .* timm:NAME"),
    ],
)
def test_what_cannot_be_is_one_sentence(nets: Path, name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        build(name, **options)
    assert "\n" not in str(error.value)


def test_errors_of_ours_pass_through_ones_own_function(nets: Path) -> None:
    (nets / "ours.py").write_text("from gemminer import models\n\ndef f():\n    return models.build('resnet21')\n")
    with pytest.raises(UsageError, match=r"^unknown model 'resnet21'"):
        build("ours:f")


def test_what_is_said_about_ones_own(nets: Path) -> None:
    assert models.describe("nets:Net") == "Two layers. Of my own"
    assert models.describe("nets:Silent") == "your own network"
    rows = {row.name: row for row in models.options("nets:Net")}
    assert list(rows) == ["hidden", "width", "pretrained"]
    assert (rows["hidden"].default, rows["pretrained"].choices) == (8, (True, False))
    assert [(row.name, row.range) for row in models.options("nets:needing")] == [("depth", "needed")]
    assert not models.has_weights("nets:Net", {"pretrained": True}), "nobody knows what its option means"


def test_a_library_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"^timm is not installed: pip install timm$"):
        build("timm:resnet18")
    assert models.completed("timm:res") == []


def test_a_shell_completes_the_names_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.completed("resnet1") == ["resnet18"]
    assert models.completed("to") == ["torchvision:"]
    assert models.completed("torchvision:mobilenet_v3") == [
        "torchvision:mobilenet_v3_large",
        "torchvision:mobilenet_v3_small",
    ]
    assert models.completed("nets:N") == []


def test_every_source_has_a_line() -> None:
    for prefix in sources.PREFIXES:
        assert len(models.describe(f"{prefix}something")) > 30
    assert issubclass(UsageError, GemminerError)
