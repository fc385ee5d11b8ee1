"""Networks: the paper's and small ones by name, and those of elsewhere: names(), describe(name), build(name)."""

from gemminer.models.library import build, completed, describe, from_options, has_weights, names, options

__all__ = ["build", "completed", "describe", "from_options", "has_weights", "names", "options"]
