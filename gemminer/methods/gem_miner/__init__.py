"""Gem-Miner: learn which weights to keep while every weight stays at its initial value."""

from gemminer.methods.gem_miner.options import Options
from gemminer.methods.gem_miner.rule import GemMinerRule
from gemminer.methods.gem_miner.search import find

__all__ = ["GemMinerRule", "Options", "find"]
