"""The name that somebody meant: one that is spelled alike, or what others call the same thing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What other packages call it -> what it is here, where the two are not spelled alike. Only names that are known in a
# place are ever suggested there.
ALIASES = {
    "learning_rate": "lr",
    "base_lr": "lr",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "num_train_epochs": "epochs",
    "sparsity": "density",
    "pruning_ratio": "density",
    "prune_ratio": "density",
    "prune_rate": "density",
    "amount": "density",
    "keep_ratio": "density",
    "remaining": "density",
    "random_state": "seed",
    "random_seed": "seed",
    "num_seeds": "seeds",
    "n_seeds": "seeds",
    "verbose": "progress",
    "progress_bar": "progress",
    "show_progress": "progress",
    "tqdm": "progress",
    "out_dir": "out",
    "output": "out",
    "output_dir": "out",
    "save_dir": "out",
    "folder": "out",
    "log_dir": "out",
    "resume": "checkpoint",
    "ckpt": "checkpoint",
    "ckpt_path": "checkpoint",
    "bs": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "criterion": "loss",
    "loss_fn": "loss",
    "objective": "loss",
    "training_step": "step",
    "compute_metrics": "metric",
    "scorer": "metric",
    "data": "train_data",
    "dataset": "train_data",
    "dataloader": "train_data",
    "loader": "train_data",
    "train_loader": "train_data",
    "train_dataset": "train_data",
    "train_dataloader": "train_data",
    "train_dataloaders": "train_data",
    "val_data": "validation_data",
    "valid_data": "validation_data",
    "val_loader": "validation_data",
    "val_dataset": "validation_data",
    "val_dataloader": "validation_data",
    "val_dataloaders": "validation_data",
    "eval_dataset": "validation_data",
    "val_split": "validation",
    "test_loader": "test_data",
    "test_dataset": "test_data",
    "test_dataloader": "test_data",
    "accumulate_grad_batches": "accumulate",
    "gradient_accumulation_steps": "accumulate",
    "gradient_clip_val": "max_norm",
    "max_grad_norm": "max_norm",
    "clip_norm": "max_norm",
    "grad_clip": "max_norm",
    "amp": "precision",
    "bf16": "precision",
    "dtype": "precision",
    "mixed_precision": "precision",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "beta1": "momentum",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "init": "initialiser",
    "ddp": "distributed",
    "skip": "exclude",
    "ignore": "exclude",
    "ignored_layers": "exclude",
    "callback": "monitor",
    "callbacks": "monitor",
    "logger": "monitor",
    "num_workers": "workers",
    "lambda": "ridge",
    "lambda_": "ridge",
    "lamda": "ridge",
    "lam": "ridge",
    "algorithm": "method",
    "pruner": "method",
    "network": "model",
    "net": "model",
}
# Names that mean the rest of what is asked for here.
_RESTS = {"sparsity", "pruning_ratio", "prune_ratio", "prune_rate", "amount"}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that this one means, itself if it is known; None where none is near.

    >>> nearest("learning_rate", ["lr", "rate"]), nearest("batchsize", ["batch_size"]), nearest("colour", ["lr"])
    ('lr', 'batch_size', None)
    """
    known = list(known)
    plain = name.strip().lower().replace("-", "_")
    for own in (name, plain, ALIASES.get(plain, plain)):
        if own in known:
            return own
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def relation(name: str, meant: str) -> str:
    """How the value of what was meant is made of the one given, where it is not the same; else nothing.

    >>> relation("sparsity", "density"), relation("densty", "density")
    ('density = 1 - sparsity', '')
    """
    return f"{meant} = 1 - {name}" if name in _RESTS and ALIASES[name] == meant else ""
