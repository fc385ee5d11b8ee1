"""gemminer: find, train, prove and use lottery tickets at initialisation in PyTorch.

ticket = gemminer.mine(model, train_data, density=0.01)             # the model is left as it was
ticket.save("gem.safetensors")
result = gemminer.train(model, ticket, train_data, test_data)       # now the model holds the trained kept weights
verdict = gemminer.check(model, ticket, train_data, test_data, seeds=3)

density = fraction of prunable weights kept, everywhere.
"""

import importlib
from types import ModuleType

from gemminer.api import check, mine, train
from gemminer.errors import GemminerError, UsageError
from gemminer.report import report
from gemminer.steps import Verdict
from gemminer.ticket import Ticket

__version__ = "0.1.0"
__all__ = ["GemminerError", "Ticket", "UsageError", "Verdict", "check", "mine", "report", "train"]


def __getattr__(name: str) -> ModuleType:
    """`gemminer.sparse`, when it is first asked for: Numba takes half a second to import."""
    if name == "sparse":
        return importlib.import_module("gemminer.sparse")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
