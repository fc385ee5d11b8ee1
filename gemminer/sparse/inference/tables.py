"""Which rule translates a module, by type, and a function, by itself, or a method, by name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gemminer.sparse.inference import layers, tokens
from gemminer.sparse.inference.builder import Ref


def _formula_module(function: str) -> Callable[..., Ref]:
    return lambda b, shape, m, x: layers.formula(function)(b, shape, x)


ACTIVATIONS: dict[type, str] = {
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Mish: "mish",
}

# A row of the formulas by its functions and methods.
NAMES: dict[str, tuple[Any, ...]] = {
    "sigmoid": (torch.sigmoid, F.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"),
    "tanh": (torch.tanh, F.tanh, torch.tanh_, "tanh", "tanh_"),
    "silu": (F.silu,),
    "hardswish": (F.hardswish,),
    "mish": (F.mish,),
    "exp": (torch.exp, "exp"),
    "abs": (torch.abs, "abs"),
    "square": (torch.square, "square"),
    "sqrt": (torch.sqrt, "sqrt"),
}

# Functions and methods that only move numbers.
MOVES = (
    torch.permute, torch.transpose, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unbind,
    torch.chunk, torch.split, torch.select, torch.narrow, torch.flip, torch.roll, torch.movedim, torch.swapaxes,
    F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle,
    "permute", "transpose", "flatten", "reshape", "view", "squeeze", "unsqueeze", "unbind", "chunk", "split", "select",
    "narrow", "flip", "roll", "movedim", "swapaxes", "expand", "repeat", "reshape_as", "expand_as", "unflatten", "t",
)  # fmt: skip


MODULES: dict[type, Callable[..., Ref]] = {
    nn.Conv2d: layers.conv_module,
    nn.Linear: lambda b, shape, m, x: layers.linear(b, shape, x, m.weight, m.bias),
    nn.BatchNorm2d: layers.batch_norm_module,
    nn.BatchNorm1d: layers.batch_norm_module,
    nn.ReLU: lambda b, shape, m, x: layers.relu(b, shape, x),
    nn.ReLU6: lambda b, shape, m, x: layers.relu6(b, shape, x),
    nn.Hardtanh: lambda b, shape, m, x: layers.clamp(b, shape, x, m.min_val, m.max_val),
    nn.LeakyReLU: lambda b, shape, m, x: layers.leaky_relu(b, shape, x, m.negative_slope),
    nn.MaxPool2d: layers.max_pool_module,
    nn.AvgPool2d: layers.avg_pool_module,
    nn.AdaptiveAvgPool2d: lambda b, shape, m, x: layers.adaptive(b, shape, x),
    nn.ZeroPad2d: lambda b, shape, m, x: layers.pad(b, shape, x, m.padding),
    nn.Flatten: lambda b, shape, m, x: b.viewed(x, m),
    **dict.fromkeys((nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle), lambda b, shape, m, x: b.viewed(x, m)),
    nn.ChannelShuffle: lambda b, shape, m, x: b.viewed(x, m),
    nn.LayerNorm: lambda b, shape, m, x: tokens.layer_norm(b, shape, x, m.normalized_shape, m.weight, m.bias, m.eps),
    nn.MultiheadAttention: tokens.multihead,
    nn.GELU: lambda b, shape, m, x: layers.gelu(b, shape, x, m.approximate),
    nn.ELU: lambda b, shape, m, x: layers.elu(b, shape, x, m.alpha),
    nn.Softplus: lambda b, shape, m, x: layers.softplus(b, shape, x, m.beta, m.threshold),
    nn.Hardsigmoid: lambda b, shape, m, x: layers.hardsigmoid(b, shape, x),
    **{layer: _formula_module(name) for layer, name in ACTIVATIONS.items()},
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), lambda b, shape, m, x: x),
}

# Functions by themselves, methods by name.
FUNCTIONS: dict[Any, Callable[..., Ref]] = {
    F.conv2d: layers.conv,
    F.linear: layers.linear,
    F.batch_norm: layers.batch_norm,
    F.hardtanh: layers.hardtanh,
    F.leaky_relu: layers.leaky_relu,
    F.pad: layers.pad,
    **dict.fromkeys((F.relu6,), layers.relu6),
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), layers.relu),
    **dict.fromkeys((torch.clamp, "clamp", "clip"), layers.clamp),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), layers.add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), layers.sub),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), layers.mul),
    **dict.fromkeys((operator.truediv, torch.div, "div", "div_"), layers.div),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), layers.neg),
    **{function: layers.formula(name) for name, functions in NAMES.items() for function in functions},
    **{function: layers.moved(function) for function in MOVES},
    F.gelu: layers.gelu,
    F.elu: layers.elu,
    F.softplus: layers.softplus,
    F.hardsigmoid: layers.hardsigmoid,
    F.layer_norm: tokens.layer_norm,
    F.scaled_dot_product_attention: tokens.attention,
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), layers.max_pool),
    F.avg_pool2d: layers.avg_pool,
    F.adaptive_avg_pool2d: layers.adaptive,
    **dict.fromkeys((torch.mean, "mean"), layers.mean),
    **dict.fromkeys((F.dropout, F.dropout2d, "contiguous", "float", "clone", "detach"), layers.same),
    operator.getitem: layers.cut,
    **dict.fromkeys((torch.cat, torch.concat), layers.cat),
    torch.stack: layers.stack,
}

# Functions whose second argument says that they change the first.
INPLACE = (F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.mish)
