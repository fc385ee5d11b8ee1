"""Classifiers of transformers: of a configuration, or with the weights of a folder or an id."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gemminer.core.errors import GemminerError, UsageError, in_words
from gemminer.models.choices import ModelOption, refused
from gemminer.models.collections import installed
from gemminer.models.hub import cached_unless_answered

_TASKS = {"images": "AutoModelForImageClassification", "text": "AutoModelForSequenceClassification"}
_FIELD = "A field of its configuration."


def kinds() -> list[str]:
    """The kinds of networks that classify images or text, each with a configuration that is its default."""
    auto = installed("transformers.models.auto.modeling_auto")
    return sorted({**_classifiers(auto, "images"), **_classifiers(auto, "text")})


def _classifiers(auto: Any, task: str) -> dict[str, Any]:
    kind = {"images": "IMAGE", "text": "SEQUENCE"}[task]
    return dict(getattr(auto, f"MODEL_FOR_{kind}_CLASSIFICATION_MAPPING_NAMES"))


def has_weights(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a network begins with weights of a folder or an id, and not with a fresh draw."""
    return bool(options.get("pretrained", name not in kinds()))


def transformers_network(name: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> nn.Module:
    transformers, asked = installed("transformers"), dict(options)
    pretrained, task = has_weights(name, options), asked.pop("task", None)
    asked.pop("pretrained", None)
    if pretrained and name in kinds():
        raise UsageError(f"hf:{name} is a configuration and has no weights: name a folder of save_pretrained, or an id")
    with _fetching(name):
        return _network(transformers, name, sizes, asked, pretrained, task)


def _network(
    transformers: Any, name: str, sizes: Mapping[str, int], asked: Mapping[str, Any], pretrained: bool, task: Any
) -> nn.Module:
    config = _configuration(transformers, name, asked, sizes, with_sizes=not pretrained)
    if sizes["classes"] != config.num_labels and "num_labels" not in asked:
        config.num_labels = sizes["classes"]
    auto = getattr(transformers, _TASKS[_task_of(config, task, f"hf:{name}")])
    try:
        if not pretrained:
            net: nn.Module = auto.from_config(config, trust_remote_code=False)
        else:  # a classifier of another size keeps its fresh draw
            net = auto.from_pretrained(name, config=config, ignore_mismatched_sizes=True, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # what a configuration that cannot be raises
        raise refused(f"hf:{name}", error) from None
    return net.train()


def _configuration(
    transformers: Any, name: str, asked: Mapping[str, Any], sizes: Mapping[str, int], with_sizes: bool
) -> Any:
    """The configuration of a kind, a folder or an id with the options, and the sizes it has fields for."""
    try:
        if name in kinds():
            usual = transformers.AutoConfig.for_model(name)
            unused = [key for key in asked if not hasattr(usual, key)]
        else:
            usual, unused = transformers.AutoConfig.from_pretrained(
                name, return_unused_kwargs=True, trust_remote_code=False, **asked
            )
        if unused:
            raise UsageError(f"hf:{name} has no option {min(unused)!r}: its options are its configuration's fields")
        fields = {"num_channels": sizes["in_channels"], "image_size": sizes["image_size"]} if with_sizes else {}
        fields = {key: value for key, value in fields.items() if hasattr(usual, key) and key not in asked}
        if name in kinds():
            return transformers.AutoConfig.for_model(name, **{**fields, **asked})
        for key, value in fields.items():
            setattr(usual, key, value)
        return usual
    except UsageError:
        raise
    except OSError:
        raise
    except Exception as error:  # a damaged file, or fields that cannot be
        raise refused(f"hf:{name}", error) from None


def _task_of(config: Any, task: Any, name: str) -> str:
    if task is not None and task not in _TASKS:
        raise UsageError(f"task is images or text, not {task!r}")
    auto = installed("transformers.models.auto.modeling_auto")
    can = [one for one in _TASKS if config.model_type in _classifiers(auto, one)]
    if task in can:
        return str(task)
    if task is not None or not can:
        what = task or "images or text"
        raise UsageError(f"{name}: transformers has no classifier of {what} of the kind {config.model_type!r}")
    return can[0]


@contextlib.contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Where a folder is read, or an id is fetched; raises GemminerError where nothing is there."""
    here = name in kinds() or _is_path(name) or Path(name).exists()
    with contextlib.nullcontext() if here else cached_unless_answered() as silent:
        try:
            yield
        except OSError as error:
            raise _not_there(name, error, silent) from None


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~"))


def _not_there(name: str, error: Exception, silent: str | None) -> GemminerError:
    if _is_path(name) and not Path(name).exists():
        return GemminerError(f"cannot load hf:{name}: there is no such folder")
    if Path(name).exists():
        return GemminerError(f"cannot load hf:{name} ({in_words(error)}): name a folder that save_pretrained wrote")
    why = in_words(error) if silent is None else f"it is not in the cache, and the hub does not answer: {silent}"
    return GemminerError(
        f"cannot load hf:{name} ({why}): name a folder that save_pretrained wrote, an id that is in the "
        "cache or can be fetched, or a kind as hf:vit, which fetches nothing"
    )


def transformers_options(name: str) -> tuple[ModelOption, ...]:
    sizes = {"in_channels": 3, "classes": 10, "image_size": 32}
    with _fetching(name):
        config = _configuration(installed("transformers"), name, {}, sizes, with_sizes=False)
    own = {key: value for key, value in config.to_dict().items() if isinstance(value, (bool, int, float))}
    fields = [ModelOption(k, v, _FIELD, (True, False) if isinstance(v, bool) else ()) for k, v in own.items()]
    task = ModelOption("task", None, "What is classified; not set, what it can.", tuple(_TASKS))
    weights = has_weights(name, {})
    begin = ModelOption("pretrained", weights, "Begin with the weights of a folder or an id.", (True, False))
    return (begin, task, *fields)
