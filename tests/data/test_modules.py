"""A DataModule's loaders are training, validation and test data; Lightning is not needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gemminer
from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor
from gemminer.data import parts_of
from tests.helpers import tiny_data, tiny_net


class Module:
    """As a Lightning DataModule, without its base class."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)
        self.data = TensorDataset(*tiny_data())

    def loader(self, name: str) -> DataLoader[Any]:
        self.calls.append(name)
        return DataLoader(self.data, batch_size=32, shuffle=name == "train")

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train")

    def val_dataloader(self) -> Any:
        return [self.loader("validation")]

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("tested")


class OnlyTraining(Module):
    def val_dataloader(self) -> Any:
        raise NotImplementedError

    test_dataloader = None  # type: ignore[assignment]


class Rows(Monitor):
    def __init__(self) -> None:
        self.validation: list[Any] = []

    def epoch(self, row: Any) -> None:
        self.validation.append(row["validation"])


def test_a_module_is_the_data_of_a_search_a_training_and_a_check() -> None:
    net, module, rows = tiny_net(), Module(), Rows()
    ticket = gemminer.mine(net, module, 0.3, epochs=2, monitor=rows)
    assert module.calls == ["prepare_data", "fit", "validation", "train"], "a search asks for no test data"
    assert None not in rows.validation
    plain = DataLoader(module.data, batch_size=32, shuffle=True)
    assert ticket == gemminer.mine(net, plain, 0.3, epochs=2)
    result = gemminer.train(net, ticket, module, epochs=2)
    assert result.test == gemminer.train(net, ticket, plain, plain, epochs=2).test
    assert module.calls[-2:] == ["test", "tested"]
    assert result.validation is not None
    assert gemminer.check(net, ticket, module, seeds=1, names="shuffle", epochs=1).verdict == "not decided"
    with pytest.raises(UsageError, match="no test data to measure on"):
        gemminer.check(net, ticket, OnlyTraining(), seeds=1, epochs=1)


def test_what_is_given_goes_before_the_module() -> None:
    module = Module()
    assert parts_of(module, "validation", "test", tested=True)[1:] == ("validation", "test")
    assert module.calls == ["prepare_data", "fit", "train"]
    assert parts_of(OnlyTraining(), tested=True)[1:] == (None, None)
    assert parts_of("data", 1, 2) == ("data", 1, 2)


def test_modules_that_cannot_be() -> None:
    class Several(Module):
        def val_dataloader(self) -> Any:
            return [self.loader("a"), self.loader("b")]

    class Nothing(Module):
        def train_dataloader(self) -> Any:
            return None

    class Broken(Module):
        def setup(self, stage: str) -> None:
            raise OSError("no such folder")

    with pytest.raises(UsageError, match=r"val_dataloader\(\) gives 2 loaders"):
        gemminer.mine(tiny_net(), Several(), 0.3)
    with pytest.raises(UsageError, match=r"train_dataloader\(\) of Nothing gives nothing to train on"):
        gemminer.mine(tiny_net(), Nothing(), 0.3)
    with pytest.raises(OSError, match="no such folder"):
        gemminer.mine(tiny_net(), Broken(), 0.3)


def test_a_module_of_lightning() -> None:
    lightning = pytest.importorskip("lightning")

    class Own(lightning.LightningDataModule):  # type: ignore[name-defined,misc]
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(*tiny_data()), batch_size=32)

    class Lit(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss: torch.Tensor = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            return loss

    assert parts_of(Own(), tested=True)[1:] == (None, None)
    model = Lit()
    ticket = gemminer.mine(model, Own(), 0.3, epochs=1, step=lambda model, batch: model.training_step(batch, 0))
    assert list(ticket.masks) == ["net.0.weight", "net.3.weight", "net.5.weight"]
