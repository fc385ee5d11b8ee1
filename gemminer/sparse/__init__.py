"""The CPU engine: networks that compute and train with kept weights only.

net = gemminer.sparse.sparsify(model, ticket)       # trains and infers on kept weights
model.load_state_dict(gemminer.sparse.densify(net)) # back to the plain network, zeros where pruned
program = gemminer.sparse.compile(model, input_shape=(3, 32, 32))  # inference only: one small file
"""

from __future__ import annotations

from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.program import Program
from gemminer.sparse.training.convert import densify, sparsify

__all__ = ["Program", "compile", "densify", "sparsify"]
