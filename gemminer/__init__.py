"""gemminer: find, train, prove and use lottery tickets at initialisation in PyTorch.

ticket = gemminer.mine(model, train_data, density=0.01)             # the model is left as it was
ticket.save("gem.safetensors")
result = gemminer.train(model, ticket, train_data, test_data)       # now the model holds the trained kept weights
verdict = gemminer.check(model, ticket, train_data, test_data, seeds=3)
page = gemminer.report(["runs/a", "runs/b"])

density = fraction of prunable weights kept, everywhere.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gemminer.core import interrupts

interrupts.install()  # before PyTorch is imported, and in the program alone

from gemminer.api import check, compare, draw, mine, train
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.holding import Hold, hold
from gemminer.core.progress import Monitor
from gemminer.core.ticket import Ticket
from gemminer.runs.checks import CheckResult as Verdict
from gemminer.runs.search_object import Search
from gemminer.runs.typed import TrainResult
from gemminer.training.pretrain import Pretrain

if TYPE_CHECKING:
    from gemminer.core.compacting import compact
    from gemminer.reporting.answering import smallest
    from gemminer.reporting.dieting import instability, scores
    from gemminer.reporting.page import report
    from gemminer.runs.answer import Smallest
    from gemminer.runs.connectivity import Instability
    from gemminer.training.scores import Scores

__version__ = "0.1.0"
__all__ = [
    "GemminerError",
    "Hold",
    "Instability",
    "Monitor",
    "Pretrain",
    "Scores",
    "Search",
    "Smallest",
    "Ticket",
    "TrainResult",
    "UsageError",
    "Verdict",
    "check",
    "compact",
    "compare",
    "draw",
    "hold",
    "instability",
    "mine",
    "report",
    "scores",
    "smallest",
    "train",
]


_LATER = {
    "compact": "gemminer.core.compacting",
    "Instability": "gemminer.runs.connectivity",
    "instability": "gemminer.reporting.dieting",
    "report": "gemminer.reporting.page",
    "scores": "gemminer.reporting.dieting",
    "Scores": "gemminer.training.scores",
    "smallest": "gemminer.reporting.answering",
    "Smallest": "gemminer.runs.answer",
}


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for: Numba takes half a second, Jinja and an answer's models a tenth."""
    if name in ("export", "sparse"):
        return importlib.import_module(f"gemminer.{name}")
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
