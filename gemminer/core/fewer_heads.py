"""PyTorch's own attention without its dead heads: its class has the heads' number tied to the width of its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.core.tracing import Trace


class FewerHeads(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with heads removed; `num_heads` are left, the parameters are the smaller ones.

    It gives no weights of attention, as those of the removed heads are not known.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if need_weights or (attn_mask is not None and attn_mask.dim() == 3):
            raise UsageError(
                "heads of this attention were removed: call it with need_weights=False, and one mask for all heads"
            )
        inputs = [x.unsqueeze(0) if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)
                  for x in (query, key, value)]  # fmt: skip
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        parts = zip(inputs, self.in_proj_weight.chunk(3), biases, strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x, w, b in parts)
        mask = _joined(attn_mask, key_padding_mask, q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return y.squeeze(0) if query.dim() == 2 else y if self.batch_first else y.transpose(0, 1), None


def _joined(mask: Tensor | None, padding: Tensor | None, kind: torch.dtype) -> Tensor | None:
    """One mask to add, (T, S) or (N, 1, T or 1, S); True hides in boolean ones."""

    def added(x: Tensor) -> Tensor:
        return torch.zeros_like(x, dtype=kind).masked_fill(x, float("-inf")) if x.dtype == torch.bool else x.to(kind)

    if padding is None:
        return None if mask is None else added(mask)
    wide = added(padding.view(-1, 1, 1, padding.shape[-1]))
    return wide if mask is None else wide + added(mask)


def cut_heads(model: nn.Module, trace: Trace) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Remove dead heads of each `nn.MultiheadAttention` in place: heads before and after; why others are left.

    A head is dead where nothing reads its output, or where all its values are one constant: its output is a mean of
    them, which goes into the bias of what reads it.
    """
    runs: dict[str, list[bool]] = {}
    for call in trace.calls:
        if call.name == "multi_head_attention_forward":
            mask = call.kwargs.get("attn_mask")
            by_head = mask is not None and len(trace.shapes[mask.index]) == 3
            runs.setdefault(call.module, []).append(bool(call.kwargs.get("need_weights", True)) or by_head)
    cut, left = {}, {}
    for name, module in model.named_modules():
        if type(module) is not nn.MultiheadAttention or not module._qkv_same_embed_dim or name not in runs:
            continue
        dead = _dead(module)
        if not bool(dead.any()):
            continue
        if any(runs[name]) or module.bias_v is not None or module.add_zero_attn:
            left[name] = f"{int(dead.sum())} dead heads: its weights of attention or a mask by heads are asked for"
            continue
        if bool(dead.all()):
            dead[0] = False
        cut[name] = len(dead), int((~dead).sum())
        _remove(module, dead)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, FewerHeads) for m in module.modules()):
            module.use_nested_tensor = False  # it is for the fused layers alone
    return cut, left


def _dead(module: nn.MultiheadAttention) -> Tensor:
    """(heads,)"""
    unread = (module.out_proj.weight == 0).unflatten(1, (module.num_heads, -1)).all(2).all(0)
    value = (module.in_proj_weight.chunk(3)[2] == 0).all(1)
    if module.in_proj_bias is not None and module.dropout > 0:  # dropout makes other means of a constant
        value = value & (module.in_proj_bias.chunk(3)[2] == 0)
    return torch.logical_or(unread, value.view(module.num_heads, -1).all(1))


@torch.no_grad()
def _remove(module: nn.MultiheadAttention, dead: Tensor) -> None:
    gone = dead.repeat_interleave(module.head_dim)
    out, rows = module.out_proj, (~gone).repeat(3)
    if module.in_proj_bias is not None:
        constant = module.in_proj_bias.chunk(3)[2].double() * gone
        folded = out.weight.double() @ constant
        out.bias.copy_((out.bias.double() + folded).to(out.bias.dtype))
        module.in_proj_bias = _kept(module.in_proj_bias, rows)
    module.in_proj_weight = _kept(module.in_proj_weight, rows)
    out.weight = _kept(out.weight, ~gone, 1)
    out.in_features = out.weight.shape[1]
    module.num_heads = int((~dead).sum())
    module._qkv_same_embed_dim = False  # PyTorch's fused encoder layers take another shape
    module.__class__ = FewerHeads


def _kept(p: Tensor, rows: Tensor, axis: int = 0) -> nn.Parameter:
    return nn.Parameter(p.index_select(axis, rows.nonzero().flatten()), requires_grad=p.requires_grad)
