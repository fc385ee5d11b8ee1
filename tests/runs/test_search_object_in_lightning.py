"""A search that Lightning's Trainer drives: the package's own masks, also where it was killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gemminer
from gemminer.core.ticket import Ticket
from tests.helpers import tiny_data, tiny_net

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice


class Searching(L.LightningModule):
    """As docs/lightning.md writes one, with what a resumed search needs."""

    state: dict[str, Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(3)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.search = gemminer.Search(self.net, density=0.3, seed=5)
        optimiser = self.search.begin(int(self.trainer.estimated_stepping_batches))
        if self.state is not None:
            self.search.load_state_dict(self.state)
        return optimiser

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.search.after_backward()

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        self.search.after_step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["search"] = self.search.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state = checkpoint["search"]


class Stop(L.Callback):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def loader(batch: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tiny_data()), batch_size=batch)


def searched(folder: Path, *callbacks: Any, resume: Path | None = None, batch: int = 16, **options: Any) -> Ticket:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    run = L.Trainer(
        accelerator="cpu", max_epochs=4, callbacks=list(callbacks), default_root_dir=folder, **quiet, **options
    )
    module = Searching()
    run.fit(module, loader(batch), ckpt_path=resume)
    return module.search.finish()


def test_the_masks_are_those_of_mine(tmp_path: Path) -> None:
    own = gemminer.mine(tiny_net(3), loader(), 0.3, epochs=4, seed=5, engine="dense")
    assert searched(tmp_path) == own
    halves = searched(tmp_path, batch=8, accumulate_grad_batches=2)
    assert halves.kept == own.kept


def test_one_that_was_killed_and_resumed_ends_in_the_same_masks(tmp_path: Path) -> None:
    whole = searched(tmp_path)
    keeper = L.pytorch.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        searched(tmp_path, keeper, Stop())
    assert searched(tmp_path, resume=tmp_path / "epoch=0.ckpt") == whole
