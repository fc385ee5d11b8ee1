"""Pruning methods: one file each, one function each, one registry row each."""

from gemminer.methods import gem_miner, random_tickets
from gemminer.methods.registry import Find, Method, get, names, register

__all__ = ["Find", "Method", "gem_miner", "get", "names", "random_tickets", "register"]
