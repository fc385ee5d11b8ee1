"""Architectures that nobody tuned for, small or as they come, all with random weights: nothing is downloaded.

`benchmarks/architecture_table.py` measures them, `tests/conformance/test_architectures.py` compares their small forms
with masked dense ones.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gemminer.core.model_state import named_state
from gemminer.core.ticket import Ticket

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@dataclass(frozen=True)
class Inputs:
    """What a batch is called with."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Architecture:
    """One architecture: its name, what is awkward about it, and how the small and the usual one are built and called.

    `build(small)` gives the model, `batch(small, seed)` a batch of it in float32.
    """

    name: str
    what: str
    build: Callable[[bool], nn.Module]
    batch: Callable[[bool, int], Inputs]
    before: bool = False  # fused before issue 11


def scalar(output: Any) -> Tensor:
    """A loss of whatever a model gives: each of its tensors weighted by cosines, so that no gradient cancels."""
    total = torch.zeros((), dtype=torch.float64)
    for i, t in enumerate(tree_leaves(output)):
        if isinstance(t, Tensor) and t.is_floating_point() and t.requires_grad:
            weights = torch.cos(torch.arange(t.numel(), dtype=torch.float64) + i).to(t.dtype).view(t.shape)
            total = total + (t * weights).sum() / math.sqrt(max(t.numel(), 1))
    return total


def cast(batch: Inputs, dtype: torch.dtype) -> Inputs:
    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        if isinstance(value, dict):
            return {k: one(v) for k, v in value.items()}
        return type(value)(map(one, value)) if isinstance(value, list | tuple) else value

    return Inputs(one(batch.args), one(batch.kwargs or {}))


def ticket_of(model: nn.Module, density: float, seed: int = 0) -> Ticket:
    """Random masks of one density in every layer, of the weights of all layers but embeddings and norms."""
    source = torch.Generator().manual_seed(seed)
    masks: dict[str, Tensor] = {}
    names = {id(p): n for n, p in reversed(list(model.named_parameters()))}
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
            masks.pop(names.get(id(getattr(module, "weight", None)), ""), None)
            continue
        for key in ("weight", "in_proj_weight"):
            weight = getattr(module, key, None)
            if isinstance(weight, nn.Parameter) and weight.dim() >= 2 and key in module._parameters:
                kept = torch.randperm(weight.numel(), generator=source)[: max(1, round(density * weight.numel()))]
                mask = torch.zeros(weight.shape, dtype=torch.bool)
                mask.view(-1)[kept] = True
                masks[names[id(weight)]] = mask
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            masks.pop(names[id(module.weight)], None)
    return Ticket(masks, named_state(model))


def relative(found: Any, right: Any) -> float:
    """The largest difference of two outputs, in units of the largest number of each tensor; inf if they are no pair."""
    a, b = ([t for t in tree_leaves(o) if isinstance(t, Tensor)] for o in (found, right))
    if type(found) is not type(right) or [t.shape for t in a] != [t.shape for t in b]:
        return math.inf
    return max((_gap(x, y, float(y.detach().abs().max())) for x, y in zip(a, b, strict=True) if y.numel()), default=0.0)


def _gap(found: Tensor, right: Tensor, scale: float) -> float:
    gap = float((found.detach().double() - right.detach().double()).abs().max()) if right.numel() else 0.0
    return math.inf if math.isnan(gap) else gap / max(scale, 1e-300)


LARGE = 2.0**40  # a learning rate so large that a weight after the step is its gradient, to the last digits


def differences(
    architecture: Architecture, engine: str, *, small: bool, dtype: torch.dtype, density: float = 0.05
) -> tuple[nn.Module, dict[str, float]]:
    """A sparse copy of the architecture, and how far it is from the masked dense model, relative to the largest number.

    Outputs of two batches in training mode and one in evaluation mode, the same random numbers for both; the gradients
    of both batches' losses, read off a step of plain descent with a huge rate; and the running statistics.
    """
    from gemminer import sparse

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = architecture.build(small).to(dtype)
        ticket = ticket_of(model, density)
        ticket.apply(model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in ticket.masks:
                    p.mul_(density**-0.5)  # as large a signal as the dense network's
        net = sparse.sparsify(model, ticket, engine=engine)  # type: ignore[arg-type]
        batches = [cast(architecture.batch(small, seed), dtype) for seed in range(3)]
        outputs: dict[str, list[Any]] = {}
        for who, one in (("right", model), ("found", net)):
            outputs[who] = []
            for seed, batch in enumerate(batches):
                one.train(seed < 2)
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002 - as a model may draw from it
                with torch.set_grad_enabled(seed < 2):
                    output = one(*batch.args, **(batch.kwargs or {}))
                if seed < 2:
                    scalar(output).backward()
                outputs[who].append(output)
        with torch.no_grad():
            for one in (model, net):
                for p in one.parameters():
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=LARGE)
    return net, _report(model, ticket, sparse.densify(net), outputs)


def _report(
    model: nn.Module, ticket: Ticket, found: dict[str, Tensor], outputs: dict[str, list[Any]]
) -> dict[str, float]:
    tied = {id(p): ticket.masks[n] for n, p in model.named_parameters() if n in ticket.masks}
    masks = {n: tied[id(p)] for n, p in model.named_parameters(remove_duplicate=False) if id(p) in tied}
    right = {n: t * masks[n] if n in masks else t for n, t in model.state_dict().items()}
    if list(found) != list(right):
        return {"names": math.inf}
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
    largest = max((float(right[n].abs().max()) for n in trained), default=0.0)
    gaps: dict[str, float] = {}
    gaps["training"] = max(map(relative, outputs["found"][:2], outputs["right"][:2]))
    gaps["evaluation"] = relative(outputs["found"][2], outputs["right"][2])
    gaps["gradients"] = max(
        (_gap(found[n], right[n], max(float(right[n].abs().max()), 1e-3 * largest)) for n in trained), default=0.0
    )
    rest = [n for n in right if n not in trained and right[n].numel()]
    gaps["statistics"] = max(
        (_gap(found[n], right[n], max(float(right[n].abs().max()), 1e-6)) for n in rest), default=0.0
    )
    model.load_state_dict(found)  # strictly
    return gaps


def state_of(net: nn.Module) -> dict[str, Any]:
    """How a sparse copy ran last: its layers that hold kept weights, and those which ran as one with what is around.

    That is in a chain with other layers, or with a norm, an addition or a ReLU behind them.
    """
    from gemminer.sparse.training.convert import layers

    held = len(layers(net))
    chains: list[tuple[Any, Any]] = [(chain.links.units, chain.norms) for chain in getattr(net, "chains", ())]
    operations = [op for op in getattr(net, "operations", ()) if op.kind == "chain"]  # before issue 11
    chains += [(op.target.units, [unit.norm for unit in op.target.units]) for op in operations]
    together = 0
    for units, norms in chains:
        real = [(u, norm) for u, norm in zip(units, norms, strict=True) if not u.shortcut]
        if len(real) > 1 or any(norm is not None or u.relu or u.residual is not None for u, norm in real):
            together += len(real)
    state = "fused" if together else "layer by layer" if held else "dense"
    return {"state": state, "layers": held, "fused": min(together, held)}  # a shared layer runs more than once


def _images(small: tuple[int, int], usual: tuple[int, int]) -> Callable[[bool, int], Inputs]:
    """Batches of images: (examples, pixels) of the small and of the usual model."""

    def batch(is_small: bool, seed: int) -> Inputs:
        n, side = small if is_small else usual
        return Inputs((torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed)),))

    return batch


def _tokens(small: tuple[int, int], usual: tuple[int, int], **extra: Any) -> Callable[[bool, int], Inputs]:
    """Batches of token numbers as keyword arguments, as a tokeniser gives them: (examples, tokens)."""

    def batch(is_small: bool, seed: int) -> Inputs:
        source = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 60, small if is_small else usual, generator=source)
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        labels = ids if extra.get("labels") == "ids" else torch.randint(2, ids.shape[:1], generator=source)
        return Inputs((), {"input_ids": ids, "attention_mask": mask, "labels": labels})

    return batch


def _boxes(small: bool, seed: int) -> Inputs:
    """Images of two sizes in a list, and a list of dicts, as torchvision's detection models want them."""
    source = torch.Generator().manual_seed(seed)
    sides = ((48, 64), (64, 48)) if small else ((96, 128), (128, 96))
    images = [torch.rand(3, *side, generator=source) for side in sides]
    box = torch.tensor([[4.0, 5.0, 30.0, 40.0], [10.0, 8.0, 44.0, 30.0]])
    return Inputs((images, [{"boxes": box, "labels": torch.tensor([1, 2])} for _ in images]))


def _of_form(options: dict[str, Any], small: bool) -> dict[str, Any]:
    """The options of one form; those called small_* and usual_* hold for it alone."""
    form = "small_" if small else "usual_"
    found = {k: v for k, v in options.items() if not k.startswith(("small_", "usual_"))}
    return found | {k.removeprefix(form): v for k, v in options.items() if k.startswith(form)}


def _tv(small: str, usual: str = "", **options: Any) -> Callable[[bool], nn.Module]:
    def build(is_small: bool) -> nn.Module:
        import torchvision.models

        name = small if is_small or not usual else usual
        module = torchvision.models
        for part in name.split(".")[:-1]:
            module = getattr(module, part)
        built: nn.Module = getattr(module, name.split(".")[-1])(**_of_form(options, is_small))
        return built

    return build


def _timm(small: str, usual: str, **options: Any) -> Callable[[bool], nn.Module]:
    def build(is_small: bool) -> nn.Module:
        import timm

        built: nn.Module = timm.create_model(
            small if is_small else usual, pretrained=False, num_classes=10, **_of_form(options, is_small)
        )
        return built

    return build


def _hf(name: str, config: str, small: dict[str, Any], usual: dict[str, Any]) -> Callable[[bool], nn.Module]:
    def build(is_small: bool) -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**(small if is_small else usual))
        built: nn.Module = getattr(transformers, name)(made)
        return built

    return build


def _resnet(small: bool) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1] if small else [2, 2, 2, 2], num_classes=10)


def _segmenter(small: bool) -> nn.Module:
    from torchvision.models.mobilenetv3 import MobileNetV3, _mobilenet_v3_conf
    from torchvision.models.segmentation.lraspp import _lraspp_mobilenetv3

    width = 0.25 if small else 1.0
    settings, last = _mobilenet_v3_conf("mobilenet_v3_large", width_mult=width, dilated=True)
    return _lraspp_mobilenetv3(MobileNetV3(settings, last), 5)


def _efficientnet(small: bool) -> nn.Module:
    import torchvision.models
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    if not small:
        return torchvision.models.efficientnet_b0(num_classes=10)
    blocks = [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 5, 2, 8, 16, 2)]
    return EfficientNet(blocks, dropout=0.2, stochastic_depth_prob=0.2, num_classes=10, last_channel=64)


def _detector(small: bool) -> nn.Module:
    from torchvision.models.detection import FasterRCNN, fasterrcnn_mobilenet_v3_large_320_fpn
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.mobilenetv3 import mobilenet_v3_small

    few = {"rpn_pre_nms_top_n_train": 40, "rpn_post_nms_top_n_train": 12, "box_detections_per_img": 5}
    few |= {"rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 8, "box_batch_size_per_image": 12}
    if not small:
        few |= {"min_size": 96, "max_size": 128}
        return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=5, **few)
    features = mobilenet_v3_small(width_mult=0.25).features[:9]
    backbone = BackboneWithFPN(features, {"3": "0", "8": "1"}, [features[3].out_channels, features[8].out_channels], 8)
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    anchors = AnchorGenerator(((8,), (16,), (32,)), ((0.5, 1.0, 2.0),) * 3)
    from torchvision.ops import MultiScaleRoIAlign

    pool = MultiScaleRoIAlign(["0", "1"], 3, 2)
    return FasterRCNN(
        backbone, 5, min_size=48, max_size=64, rpn_anchor_generator=anchors, box_roi_pool=pool, box_head=None, **few
    )


_BERT: dict[str, Any] = {"vocab_size": 64, "max_position_embeddings": 64}
_SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_USUAL: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
_USUAL |= {"intermediate_size": 1024}

ARCHITECTURES = (
    Architecture("torchvision resnet18", "", _resnet, _images((4, 32), (2, 64)), before=True),
    Architecture(
        "torchvision densenet121",
        "concatenations",
        _tv(
            "densenet.DenseNet",
            "densenet121",
            small_growth_rate=8,
            small_block_config=(2, 2),
            small_num_init_features=8,
            num_classes=10,
        ),
        _images((4, 32), (2, 64)),
        before=True,
    ),
    Architecture(
        "torchvision shufflenet_v2",
        "chunks, channel shuffles, depthwise",
        _tv("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", num_classes=10),
        _images((4, 64), (8, 96)),
        before=True,
    ),
    Architecture("timm resnet18", "", _timm("test_resnet", "resnet18"), _images((2, 32), (2, 64)), before=True),
    Architecture(
        "timm convnext_atto",
        "GELU, layer norm, permutations",
        _timm("test_convnext", "convnext_atto"),
        _images((2, 32), (4, 64)),
        before=True,
    ),
    Architecture(
        "timm vit_tiny",
        "attention",
        _timm("test_vit", "vit_tiny_patch16_224", small_img_size=32, usual_img_size=96),
        _images((2, 32), (2, 96)),
        before=True,
    ),
    Architecture(
        "torchvision efficientnet_b0",
        "SiLU in place, squeeze and excite, random depth",
        _efficientnet,
        _images((4, 32), (4, 64)),
    ),
    Architecture(
        "torchvision mobilenet_v3_small",
        "Hardswish in place",
        _tv("mobilenet_v3_small", small_width_mult=0.25, num_classes=10),
        _images((4, 32), (16, 96)),
    ),
    Architecture(
        "torchvision mobilenet_v2",
        "ReLU6 in place",
        _tv("mobilenet_v2", small_width_mult=0.25, num_classes=10),
        _images((4, 32), (8, 64)),
    ),
    Architecture(
        "torchvision mnasnet1_0",
        "versions in its state dict",
        _tv("mnasnet.MNASNet", "mnasnet1_0", small_alpha=0.1, num_classes=10),
        _images((4, 32), (8, 64)),
    ),
    Architecture(
        "torchvision googlenet",
        "auxiliary heads in training only, a namedtuple",
        _tv("googlenet", num_classes=10, init_weights=False),
        _images((2, 32), (2, 64)),
    ),
    Architecture("torchvision fasterrcnn", "lists in, dicts out, other outputs in training", _detector, _boxes),
    Architecture(
        "torchvision lraspp_mobilenet_v3",
        "a dict out, dilated",
        _segmenter,
        _images((2, 32), (4, 96)),
    ),
    Architecture(
        "torchvision squeezenet1_1",
        "concatenations, dropout",
        _tv("squeezenet1_1", num_classes=10),
        _images((2, 48), (4, 96)),
    ),
    Architecture(
        "torchvision regnet_y_400mf",
        "grouped, squeeze and excite",
        _tv("regnet_y_400mf", num_classes=10),
        _images((4, 32), (8, 64)),
    ),
    Architecture(
        "torchvision swin_t",
        "shifted windows, random depth",
        _tv(
            "swin_transformer.SwinTransformer",
            "swin_t",
            small_patch_size=[2, 2],
            small_embed_dim=16,
            small_depths=[2, 2],
            small_num_heads=[2, 4],
            small_window_size=[4, 4],
            num_classes=10,
        ),
        _images((2, 32), (1, 64)),
    ),
    Architecture(
        "timm mobilenetv3_small_050",
        "Hardswish in place",
        _timm("mobilenetv3_small_050", "mobilenetv3_small_050"),
        _images((4, 64), (32, 96)),
    ),
    Architecture(
        "timm efficientvit_b0",
        "linear attention, autocast inside",
        _timm("efficientvit_b0", "efficientvit_b0"),
        _images((2, 32), (8, 96)),
    ),
    Architecture(
        "timm nfnet",
        "weights standardised in forward, no batch norm",
        _timm("test_nfnet", "nfnet_l0"),
        _images((2, 32), (1, 64)),
    ),
    Architecture(
        "timm byobnet", "blocks of several kinds", _timm("test_byobnet", "gernet_s"), _images((2, 32), (8, 64))
    ),
    Architecture(
        "timm efficientnet (evos)",
        "norms with their own activation",
        _timm("test_efficientnet_evos", "efficientnet_lite0"),
        _images((2, 32), (8, 64)),
    ),
    Architecture("timm ghostnet_050", "slices", _timm("ghostnet_050", "ghostnet_050"), _images((2, 64), (16, 96))),
    Architecture(
        "timm edgenext_xx_small",
        "attention over channels",
        _timm("edgenext_xx_small", "edgenext_xx_small"),
        _images((2, 64), (8, 96)),
    ),
    Architecture(
        "timm coatnet",
        "relative positions",
        _timm("test_coatnet", "coat_lite_tiny", img_size=64),
        _images((2, 64), (2, 64)),
    ),
    Architecture(
        "transformers BERT",
        "keyword arguments, its own loss",
        _hf("BertForSequenceClassification", "BertConfig", _BERT | _SMALL, _BERT | _USUAL),
        _tokens((3, 8), (4, 16)),
    ),
    Architecture(
        "transformers GPT-2",
        "Conv1D, a tied head, a cache",
        _hf(
            "GPT2LMHeadModel",
            "GPT2Config",
            {
                "vocab_size": 64,
                "n_embd": 16,
                "n_layer": 2,
                "n_head": 2,
                "n_positions": 64,
                "bos_token_id": 0,
                "eos_token_id": 1,
            },
            {
                "vocab_size": 64,
                "n_embd": 256,
                "n_layer": 4,
                "n_head": 4,
                "n_positions": 64,
                "bos_token_id": 0,
                "eos_token_id": 1,
            },
        ),
        _tokens((3, 8), (4, 16), labels="ids"),
    ),
    Architecture(
        "transformers ViT",
        "a dataclass out",
        _hf(
            "ViTForImageClassification",
            "ViTConfig",
            _SMALL | {"image_size": 32, "patch_size": 8},
            _USUAL | {"image_size": 32, "patch_size": 8},
        ),
        _images((2, 32), (4, 32)),
    ),
    Architecture(
        "transformers Llama",
        "rotary positions, gated layers",
        _hf("LlamaForCausalLM", "LlamaConfig", _BERT | _SMALL, _BERT | _USUAL),
        _tokens((3, 8), (4, 16), labels="ids"),
    ),
    Architecture(
        "transformers BART",
        "layers dropped by chance",
        _hf(
            "BartForConditionalGeneration",
            "BartConfig",
            {
                **_BERT,
                "d_model": 16,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 32,
                "decoder_ffn_dim": 32,
                "encoder_layerdrop": 0.5,
                "decoder_layerdrop": 0.5,
            },
            {
                **_BERT,
                "d_model": 256,
                "encoder_layers": 3,
                "decoder_layers": 3,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 512,
                "decoder_ffn_dim": 512,
                "encoder_layerdrop": 0.3,
                "decoder_layerdrop": 0.3,
            },
        ),
        _tokens((3, 8), (8, 16), labels="ids"),
    ),
)
