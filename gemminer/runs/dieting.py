"""A data diet from Python: `gemminer.scores`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Unpack

from torch import nn

from gemminer.core import numbers
from gemminer.core.progress import Monitor
from gemminer.runs import called, diet
from gemminer.runs.keywords import takes
from gemminer.runs.typed import ScoreOptions, ScoringOptions
from gemminer.training.scores import Scores
from gemminer.training.scoring import checked_kind


@takes("gemminer.scores", lambda _: ("", ScoreOptions.__annotations__))
def scores(
    model: nn.Module,
    data: Any,
    kind: Literal["el2n", "forgetting", "loss"] = "el2n",
    *,
    runs: int = 10,
    epochs: int = 20,
    seed: int = 0,
    initialiser: str = "default",
    checkpoint: str | Path | None = None,
    progress: bool = False,
    monitor: Monitor | None = None,
    **how: Unpack[ScoreOptions],
) -> Scores:
    """Score how hard each training example is, by networks that are trained for it; the model is left as it was.

    EL2N of example i is the mean over the networks of ||softmax(f(x_i)) - onehot(y_i)||_2 after `epochs` epochs.

    Args:
        model: any module; what is trained is this network, its prunable weights drawn anew for each run.
        data: tensors, a data set or a DataLoader of one, as in `mine`: training data only. Examples need an index,
            which those of a stream have not.
        kind: "el2n"; "forgetting", how often an example goes from right to wrong in training; "loss", that of the
            example, for losses that are no classification.
        runs: the networks.
        epochs: passes over the data before an example is scored, 1 or more; for forgetting, those that are watched.
        seed: of the weights and the order of the batches.
        initialiser: as in `mine`; "keep" takes the model's own weights for all runs.
        checkpoint: a file that keeps the networks that are done; a killed call goes on from it. Removed at the end.
        progress: as in `mine`.
        monitor: as in `mine`.
        how: batch_size, loss, step (then kind must be "loss"), precision and accumulate as in `mine`; noise, the
            fraction of labels that is drawn anew, as for `Pretrain(noise=...)`; and fields of
            `gemminer.training.settings.Settings`, whose schedule is constant by default, as published.

    Returns:
        The scores: `choose(count, "easiest")` gives indices, `save(path)` a file.

    Raises:
        UsageError: a stream, a loss that the kind cannot be of, scores of untrained networks, several processes.
        GemminerError: the loss is not finite, the disk is full.

    Source: Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021; Toneva et al., ICLR 2019 (forgetting).

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> data = (x := torch.randn(64, 4), (x[:, 0] > 0).long())
    >>> scores = gemminer.scores(net, data, runs=2, epochs=3)
    >>> scores
    Scores(el2n of 64 examples, 2 networks after 3 epochs)
    >>> len(scores.choose(16, "easiest"))
    16
    """
    checked_kind(kind, runs, epochs)
    seed, given = numbers.seed_of(seed), dict[str, Any](how)
    noise = float(given.pop("noise", 0.0))
    read = {name: given.pop(name) for name in ScoringOptions.__annotations__ if name in given}
    experiment = called.experiment_of(
        model, data, metric=None, monitor=monitor, seed=seed, checkpoint=checkpoint, **read
    )
    found = diet.scores_of(experiment, kind, runs, epochs, diet.dense_draw(initialiser, seed), given, noise)
    if experiment.task.checkpoint is not None:
        experiment.task.checkpoint.clear()
    return found
