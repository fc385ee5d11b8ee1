"""The CPU engine: networks that compute and train with kept weights only.

net = gemminer.sparse.sparsify(model, ticket)       # trains and infers on kept weights
model.load_state_dict(gemminer.sparse.densify(net)) # back to the plain network, zeros where pruned
program = gemminer.sparse.compile(model, input_shape=(3, 32, 32))  # inference only: one small file
"""

from __future__ import annotations

from gemminer.sparse.compile import compile
from gemminer.sparse.convert import densify, sparsify
from gemminer.sparse.inference import Program

__all__ = ["Program", "compile", "densify", "sparsify"]
