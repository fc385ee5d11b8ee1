"""Pruning methods: one file each, one function each, one registry row each."""

from gemminer.methods import gem_miner  # the first to be registered, and so the first of every list

# isort: split
from gemminer.methods import (
    edge_popup,
    grasp,
    imp,
    layers,
    magnitude,
    prospr,
    random_tickets,
    smart_ratio,
    snip,
    synflow,
)
from gemminer.methods.registry import Find, Found, Method, get, names, register

__all__ = [
    "Find",
    "Found",
    "Method",
    "edge_popup",
    "gem_miner",
    "get",
    "grasp",
    "imp",
    "layers",
    "magnitude",
    "names",
    "prospr",
    "random_tickets",
    "register",
    "smart_ratio",
    "snip",
    "synflow",
]
