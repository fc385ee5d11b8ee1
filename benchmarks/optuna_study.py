"""Whether tuning the options of a search pays: 60 trials of optuna against the defaults, on other seeds.

OMP_NUM_THREADS=1 python benchmarks/optuna_study.py prints the figures of docs/optuna.md.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import optuna
import torch

import gemminer
from gemminer import models

DIGITS = gemminer.data.load("digits")
SEARCH = ("lr", "start", "slack", "repair")
DEFAULTS: dict[str, float] = {"lr": 0.2, "start": 0.5, "slack": 6, "repair": 0.25, "weight_decay": 1e-4}


class Report(gemminer.Monitor):
    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def epoch(self, row: dict[str, Any]) -> None:
        self.trial.report(row["validation"], row["epoch"])
        if self.trial.should_prune():
            raise optuna.TrialPruned


def accuracy(options: dict[str, float], data: Any, seed: int, monitor: gemminer.Monitor | None = None) -> float:
    """Of the trained ticket, on `data`."""
    torch.manual_seed(0)
    model = models.build("lenet-300-100", in_channels=1, classes=10, image_size=8)
    search: Any = {name: options[name] for name in SEARCH}
    ticket = gemminer.mine(
        model, DIGITS.train, 0.0144, epochs=10, seed=seed, validation_data=DIGITS.validation, monitor=monitor, **search
    )
    decay = options["weight_decay"]
    result = gemminer.train(model, ticket, DIGITS.train, data, epochs=10, seed=seed, weight_decay=decay)
    assert result.test is not None
    return result.test


def objective(trial: optuna.Trial) -> float:
    options = {
        "lr": trial.suggest_float("lr", 0.05, 1, log=True),
        "start": trial.suggest_float("start", 0.1, 1),
        "slack": trial.suggest_float("slack", 1, 30, log=True),
        "repair": trial.suggest_float("repair", 0, 0.6),
        "weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True),
    }
    return accuracy(options, DIGITS.validation, 0, Report(trial))


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0), pruner=pruner)
    study.enqueue_trial(DEFAULTS)
    begun = time.perf_counter()
    study.optimize(objective, n_trials=60)
    pruned = sum(trial.state.name == "PRUNED" for trial in study.trials)
    print(f"{time.perf_counter() - begun:.0f} s, {pruned} of {len(study.trials)} trials ended early")
    print(f"validation: defaults {study.trials[0].value:.4f}, best {study.best_value:.4f} of {study.best_params}")
    for name, options in {"defaults": DEFAULTS, "best": study.best_params}.items():
        values = [100 * accuracy(options, DIGITS.test, seed) for seed in range(1, 9)]
        print(f"test, {name}: {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} (n = {len(values)})")


if __name__ == "__main__":
    main()
