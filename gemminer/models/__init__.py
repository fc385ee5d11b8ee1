"""The paper's networks and the small ones, as plain modules: names(), describe(name), options(name), build(name)."""

from gemminer.models.library import build, describe, names, options

__all__ = ["build", "describe", "names", "options"]
