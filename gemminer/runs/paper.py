"""The paper's settings by name, as the fields of recipes."""

from __future__ import annotations

from typing import Any

# Fine-tuning drops the rate by ten at these epochs of that many (Rare Gems, appendix).
_DROPS = {150: (80, 120), 200: (100, 150), 300: (150, 250)}


def _row(
    model: str,
    data: str,
    percent: float,
    optimiser: str,
    lr: float,
    every: int,
    epochs: int,
    ridge: float,
    tune_lr: float,
) -> dict[str, Any]:
    """A row of the paper's table of settings, as a recipe."""
    tiny = data == "tiny-imagenet"
    return {
        "model": model,
        "data": data,
        "density": round(percent / 100, 8),
        "epochs": epochs,
        "train_epochs": epochs,
        "batch_size": 256 if tiny else 128,
        "initialiser": "signed-constant",
        "model_options": {"norm": "non-affine", **({"stem": "small"} if tiny else {})},
        "options": {"optimiser": optimiser, "lr": lr, "freeze_every": every, "ridge": ridge},
        "train": {"lr": tune_lr, "schedule": "multistep", "milestones": _DROPS[epochs], "weight_decay": 1e-4},
    }


# Network, data, then rows of (density %, optimiser, lr, E, T, lambda, fine-tuning lr): Rare Gems, appendix.
_TABLE: tuple[tuple[str, str, tuple[tuple[float, str, float, int, int, float, float], ...]], ...] = (
    (
        "resnet20",
        "cifar10",
        (
            (50, "sgd", 0.05, 8, 150, 1e-8, 0.1),
            (13.34, "sgd", 0.1, 5, 150, 1e-5, 0.01),
            (3.72, "sgd", 0.1, 5, 150, 3e-5, 0.01),
            (1.44, "sgd", 0.1, 5, 150, 1e-4, 0.01),
            (0.59, "sgd", 0.1, 5, 150, 1e-4, 0.01),
        ),
    ),
    (
        "mobilenet-v2",
        "cifar10",
        (
            (20, "sgd", 0.1, 5, 300, 3e-6, 0.01),
            (5, "sgd", 0.1, 5, 300, 7e-6, 0.01),
            (1.4, "sgd", 0.1, 5, 300, 1.5e-5, 0.01),
        ),
    ),
    ("vgg16", "cifar10", tuple((d, "adam", 0.01, 5, 200, 1e-6, 0.05) for d in (5, 2.5, 1.4, 0.5))),
    (
        "wideresnet-28-2",
        "cifar10",
        tuple((d, "sgd", 0.5, 10, 150, 1e-5, 0.01) for d in (20, 5.5, 2.3, 1.4)),
    ),
    ("resnet18", "tiny-imagenet", ((1.4, "adam", 1e-3, 5, 200, 9e-6, 0.1),)),
)

NAMED: dict[str, dict[str, Any]] = {
    # `make mine`: the smallest ticket of the paper's ResNet-20, on the data set every installation has.
    # The training's length was chosen by five-fold cross-validation inside the training part.
    "digits": {
        "model": "resnet20",
        "data": "digits",
        "density": 0.0059,
        "epochs": 40,
        "train_epochs": 20,
        "batch_size": 64,
    },
    **{f"paper/{model}-{data}-{row[0]:g}": _row(model, data, *row) for model, data, rows in _TABLE for row in rows},
}
