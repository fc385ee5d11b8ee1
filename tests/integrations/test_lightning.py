"""Tickets in Lightning's own Trainer: zeros stay, training resumes exactly, other tickets' checkpoints are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gemminer
from gemminer.core.errors import UsageError
from gemminer.integrations.lightning import TicketCallback
from tests.helpers import drawn_ticket, tiny_data, tiny_net

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice: more workers, fewer logs


class Module(L.LightningModule):
    """As Lightning's tutorials write one; what is pruned is inside it."""

    def __init__(self, late: bool = False, learning_rate: float = 0.01) -> None:
        super().__init__()
        self.net: nn.Module = nn.Identity() if late else tiny_net(3)
        self.late, self.learning_rate = late, learning_rate

    def setup(self, stage: str) -> None:
        if self.late:
            self.net = tiny_net(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


class Digits(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tiny_data()), batch_size=16)


def trainer(*callbacks: Any, folder: Path | None = None, kind: Any = L.Trainer, **options: Any) -> Any:
    options = {"max_epochs": 2, **options}
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    quiet["enable_checkpointing"] = False
    return kind(accelerator="cpu", callbacks=list(callbacks), default_root_dir=folder, **quiet, **options)


def moved(module: nn.Module, ticket: gemminer.Ticket) -> int:
    """The pruned weights that are not zero."""
    weights = dict(module.named_parameters())
    return sum(int(weights[name].detach()[~mask].count_nonzero()) for name, mask in ticket.masks.items())


@pytest.mark.parametrize("kind", [L.Trainer, pytorch_lightning.Trainer], ids=["lightning", "pytorch_lightning"])
def test_a_callback_alone_or_in_a_list_is_taken_under_both_names(kind: Any) -> None:
    callback = TicketCallback(drawn_ticket(tiny_net()))
    assert callback in kind(logger=False, callbacks=callback).callbacks


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.5}, {"accumulate_grad_batches": 3}],
    ids=["plain", "bf16", "clipping", "accumulation"],
)
def test_zeros_stay_and_the_rest_is_trained(options: dict[str, Any]) -> None:
    module, ticket = Module(), drawn_ticket(tiny_net(3), 0.2)
    callback = TicketCallback(ticket)
    trainer(callback, **options).fit(module, loader())
    assert moved(module.net, ticket) == 0
    own = dict(module.net.named_parameters())
    assert any(not torch.equal(own[name][mask], ticket.initial[name][mask]) for name, mask in ticket.masks.items())
    assert callback.held.violations() == 0
    assert not any(p._backward_hooks for p in module.parameters())  # released


def test_without_the_callback_they_move() -> None:
    module, ticket = Module(), drawn_ticket(tiny_net(3), 0.2)
    ticket.apply(module.net)
    trainer().fit(module, loader())
    assert moved(module.net, ticket) > 200


def test_clipping_sees_the_masked_norm() -> None:
    norms = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            kept = {f"net.{name}": mask for name, mask in ticket.masks.items()}
            grads = [p.grad * kept.get(name, 1) for name, p in module.named_parameters()]
            norms.append(
                (nn.utils.get_total_norm([p.grad for p in module.parameters()]), nn.utils.get_total_norm(grads))
            )

    module, ticket = Module(), drawn_ticket(tiny_net(3), 0.2)
    trainer(Look(), TicketCallback(ticket)).fit(module, loader())
    assert all(float(whole) == float(masked) > 0 for whole, masked in norms)


@pytest.mark.parametrize("how", ["a ticket", "a file", "mined"])
def test_resuming_is_exact(how: str, tmp_path: Path) -> None:
    file = drawn_ticket(tiny_net(3), 0.2).save(tmp_path / "gem.safetensors")

    def callback() -> TicketCallback:
        if how == "mined":
            return TicketCallback(mine={"density": 0.3, "epochs": 3})
        return TicketCallback(str(file) if how == "a file" else gemminer.Ticket.load(file))

    whole = Module()
    trainer(callback(), max_epochs=4).fit(whole, datamodule=Digits())
    begun, first = trainer(callback(), max_epochs=2), Module()
    begun.fit(first, datamodule=Digits())
    begun.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(17)
    again, resumed = callback(), Module()
    for p in resumed.parameters():
        nn.init.normal_(p)  # whatever it was: the checkpoint holds what it becomes
    trainer(again, max_epochs=4).fit(resumed, datamodule=Digits(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert again.ticket is not None
    assert moved(resumed if how == "mined" else resumed.net, again.ticket) == 0


def test_a_checkpoint_of_another_ticket_is_refused(tmp_path: Path) -> None:
    begun = trainer(TicketCallback(drawn_ticket(tiny_net(3), 0.2)))
    begun.fit(Module(), loader())
    begun.save_checkpoint(tmp_path / "other.ckpt")
    for other in (TicketCallback(drawn_ticket(tiny_net(3), 0.2, seed=1)), TicketCallback(mine={"density": 0.2})):
        with pytest.raises(UsageError, match="the checkpoint is of another ticket"):
            trainer(other, max_epochs=4).fit(Module(), loader(), ckpt_path=tmp_path / "other.ckpt")


def test_what_was_mined_otherwise_is_another_ticket(tmp_path: Path) -> None:
    begun = trainer(TicketCallback(mine={"density": 0.3, "epochs": 1}))
    begun.fit(Module(), loader())
    begun.save_checkpoint(tmp_path / "mined.ckpt")
    other = TicketCallback(mine={"density": 0.2, "epochs": 1})
    with pytest.raises(UsageError, match="the checkpoint is of another ticket"):
        trainer(other, max_epochs=4).fit(Module(), loader(), ckpt_path=tmp_path / "mined.ckpt")


def test_a_dense_checkpoint_keeps_its_weights_where_the_ticket_does(tmp_path: Path) -> None:
    begun, dense = trainer(), Module(learning_rate=0.0)
    begun.fit(dense, loader())
    begun.save_checkpoint(tmp_path / "dense.ckpt")
    module, ticket = Module(), drawn_ticket(tiny_net(3), 0.2)
    trainer(TicketCallback(ticket), max_epochs=3).fit(module, loader(), ckpt_path=tmp_path / "dense.ckpt")
    before, mask = dense.net[0].weight, ticket.masks["0.weight"]  # type: ignore[index]
    assert torch.equal(module.net[0].weight, before * mask)  # type: ignore[index]


def test_mined_in_fit_is_what_mine_finds(tmp_path: Path) -> None:
    callback = TicketCallback(mine={"density": 0.3, "epochs": 3, "seed": 5})
    module = Module()
    trainer(callback).fit(module, datamodule=Digits())
    alone = Module()
    expected = gemminer.mine(alone, loader(), 0.3, epochs=3, seed=5)
    assert callback.ticket == expected
    assert moved(module, expected) == 0


TWO = """
from pathlib import Path
import lightning as L
from gemminer.integrations.lightning import TicketCallback
from tests.integrations.test_lightning import Module, loader, moved
if __name__ == "__main__":
    callback, module = TicketCallback(mine={"density": 0.3, "epochs": 2}), Module()
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", callbacks=[callback], **quiet)
    trainer.fit(module, loader())
    found = Path(__file__).with_name(f"found-{trainer.global_rank}")
    found.write_text(f"{callback.ticket.digest} {moved(module, callback.ticket)}")
    trainer.strategy.barrier()  # the first process ends the second when it ends
"""


@pytest.mark.slow
def test_two_processes_search_together(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(script)], env=where, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    first, second = ((tmp_path / f"found-{rank}").read_text() for rank in range(2))
    assert first == second
    assert first.endswith(" 0")


def test_a_callback_has_one_ticket() -> None:
    for given in ({}, {"ticket": drawn_ticket(tiny_net()), "mine": {"density": 0.3}}):
        with pytest.raises(UsageError, match="pass either a ticket or mine="):
            TicketCallback(**given)


def test_a_module_that_builds_itself_late_and_fits_again_goes_on() -> None:
    ticket = drawn_ticket(tiny_net(3), 0.2)
    callback, module = TicketCallback(ticket), Module(late=True)
    trainer(callback).fit(module, loader())
    module.late = False
    trained = {name: p.detach().clone() for name, p in module.net.named_parameters()}
    module.learning_rate = 0.0
    trainer(callback).fit(module, loader())  # not from the ticket's weights again
    assert all(torch.equal(p, trained[name]) for name, p in module.net.named_parameters())
    trainer(callback).fit(other := Module(learning_rate=0.0), loader())
    assert torch.equal(other.net[0].weight, ticket.initial["0.weight"] * ticket.masks["0.weight"])  # type: ignore[index]


@pytest.mark.parametrize(("error", "ends"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, SystemExit)])
def test_an_exception_releases_and_another_ticket_may_follow(error: Any, ends: Any) -> None:
    class Stop(Module):
        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            if stop:
                raise error("stop")
            return super().training_step(batch, index)

    module, stop = Stop(), True
    with pytest.raises(ends):
        trainer(TicketCallback(drawn_ticket(tiny_net(3)))).fit(module, loader())
    assert not any(p._backward_hooks for p in module.parameters())
    stop = False
    trainer(TicketCallback(second := drawn_ticket(tiny_net(3), 0.2, seed=1))).fit(module, loader())
    assert whole(module.net, second)


def whole(net: nn.Module, ticket: gemminer.Ticket) -> bool:
    """Whether the weights that are not zero are those that the ticket keeps."""
    return all(torch.equal(net.get_parameter(n) != 0, mask) for n, mask in ticket.masks.items())


def test_what_an_interrupted_training_holds_ends_before_a_checkpoint_is_restored(tmp_path: Path) -> None:
    first, second = drawn_ticket(tiny_net(3), 0.2), drawn_ticket(tiny_net(3), 0.2, seed=1)
    begun = trainer(TicketCallback(second))
    begun.fit(Module(), loader())
    begun.save_checkpoint(tmp_path / "second.ckpt")
    module = Module()
    TicketCallback(first).hold(module)  # as where nothing told the callback of the end
    trainer(TicketCallback(second), max_epochs=3).fit(module, loader(), ckpt_path=tmp_path / "second.ckpt")
    assert whole(module.net, second)


def test_a_second_module_is_searched_anew_and_the_same_one_goes_on() -> None:
    searched = []

    class Told(gemminer.core.progress.Monitor):
        def begin(self, phase: str, start: int, stop: int) -> None:
            searched.append(phase)

    callback = TicketCallback(mine={"density": 0.3, "epochs": 1, "monitor": Told(), "initialiser": "keep"})
    first, second = Module(), Module()
    with torch.no_grad():
        for p in second.parameters():
            p.mul_(1 + torch.rand_like(p))
    for count, module in enumerate((first, second), 1):
        expected = gemminer.mine(module, loader(), 0.3, epochs=1, initialiser="keep")
        trainer(callback).fit(module, loader())
        assert callback.ticket == expected
        assert whole(module, expected)
        trainer(callback).fit(module, loader())
        assert len(searched) == count
        assert callback.ticket == expected


def test_a_rate_is_sought_for_a_second_module_too(tmp_path: Path) -> None:
    """Lightning restores its checkpoint of before that search, when the callback has not begun this module."""
    callback = TicketCallback(mine={"density": 0.3, "epochs": 1})
    for _ in range(2):
        finder = L.pytorch.callbacks.LearningRateFinder(num_training_steps=8, update_attr=True)
        trainer(finder, callback, folder=tmp_path, max_epochs=1).fit(module := Module(), loader())
        assert callback.ticket is not None
        assert whole(module, callback.ticket)


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (0.05, r"arguments of gemminer.mine, as in mine=dict\(density=0.05\), not 0.05"),
        ({}, "mine has no density"),
        ({"densty": 0.05}, "unknown argument of gemminer.mine with gem-miner 'densty'; did you mean 'density'"),
        ({"density": 5}, "above 0 and at most 1; 5 is not"),
        ({"density": 0.1, "method": "gem-minr"}, "did you mean 'gem-miner'"),
        ({"density": 0.1, "model": 1}, "mine takes no model: what is searched"),
        ({"density": 0.1, "method": "snip", "slack": 0.1}, "unknown argument of gemminer.mine with snip 'slack'"),
    ],
)
def test_what_is_no_argument_of_mine_is_refused_before_there_is_a_trainer(mine: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TicketCallback(mine=mine)


def test_lightnings_search_for_a_rate_leaves_the_ticket(tmp_path: Path) -> None:
    ticket, module = drawn_ticket(tiny_net(3), 0.2), Module()
    finder = L.pytorch.callbacks.LearningRateFinder(num_training_steps=8, update_attr=True)
    with warnings.catch_warnings(action="ignore"):
        trainer(finder, TicketCallback(ticket), folder=tmp_path, max_epochs=1, max_steps=1).fit(module, loader())
    start = tiny_net(3)
    ticket.apply(start)
    assert moved(module.net, ticket) == 0
    gap = (module.net[0].weight - start[0].weight).abs().max()  # type: ignore[index]
    assert 0 < float(gap) <= 2 * module.learning_rate  # one step of AdamW from the ticket's weights


def one_trained(ticket: gemminer.Ticket) -> Module:
    """A module in which a callback has trained a ticket."""
    trainer(TicketCallback(ticket)).fit(module := Module(), loader())
    return module


@pytest.mark.parametrize(("keep", "goes_on"), [(None, True), (True, True), (False, False)])
def test_a_new_callback_of_the_same_ticket_goes_on_and_says_so(
    keep: bool | None, goes_on: bool, caplog: pytest.LogCaptureFixture
) -> None:
    module = one_trained(ticket := drawn_ticket(tiny_net(3), 0.2))
    trained = module.net.get_parameter("0.weight").detach().clone()
    module.learning_rate = 0.0
    with caplog.at_level("INFO", "gemminer"):
        trainer(TicketCallback(ticket, keep_weights=keep)).fit(module, loader())
    start = ticket.initial["0.weight"] * ticket.masks["0.weight"]
    assert torch.equal(module.net.get_parameter("0.weight"), trained if goes_on else start)
    said = {None: "goes on from the model's own weights; give keep_weights=False", True: "", False: "start is written"}
    lines = [record.getMessage() for record in caplog.records if record.name == "gemminer"]
    assert len(lines) == (keep is not True)
    assert said[keep] in "".join(lines)


def test_weights_that_no_training_of_the_ticket_left_are_not_kept_unless_it_is_said() -> None:
    ticket = drawn_ticket(tiny_net(3), 0.2)
    for keep in (None, True):
        torch.manual_seed(5)
        (module := Module(learning_rate=0.0)).net = tiny_net(9)
        own = module.net.get_parameter("0.weight").detach().clone()
        trainer(TicketCallback(ticket, keep_weights=keep)).fit(module, loader())
        wanted = (own if keep else ticket.initial["0.weight"]) * ticket.masks["0.weight"]
        assert torch.equal(module.net.get_parameter("0.weight"), wanted)
    whole = drawn_ticket(tiny_net(3), 1.0)  # prunes nothing, so no zeros say that it was trained
    module = Module(learning_rate=0.0)
    module.net = tiny_net(9)
    trainer(TicketCallback(whole)).fit(module, loader())
    assert torch.equal(module.net.get_parameter("0.weight"), whole.initial["0.weight"])


def test_of_two_equal_modules_the_one_that_is_named_is_trained() -> None:
    class Twins(Module):
        def __init__(self) -> None:
            super().__init__()
            self.other = tiny_net(4)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]) + self.other(batch[0]), batch[1])

    ticket = drawn_ticket(tiny_net(3), 0.2)
    with pytest.raises(UsageError, match=r"fits net and other: .* \(to a callback its name: module='net'\)"):
        trainer(TicketCallback(ticket)).fit(Twins(), loader())
    trainer(callback := TicketCallback(ticket, module="other")).fit(module := Twins(), loader())
    assert callback.held.violations() == moved(module.other, ticket) == 0
    assert moved(module.net, ticket) > 0
    with pytest.raises(UsageError, match=r"unknown module 'othr'; did you mean 'other'\?"):
        trainer(TicketCallback(ticket, module="othr")).fit(module, loader())
    with pytest.raises(UsageError, match="leave module= out"):
        TicketCallback(mine={"density": 0.2}, module="net")


def test_what_a_callback_does_not_take_and_what_it_has_not_yet_is_said() -> None:
    with pytest.raises(UsageError, match=r"unknown argument of TicketCallback 'mines'; did you mean 'mine'\?"):
        TicketCallback(mines={"density": 0.2})  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="nothing is held yet"):
        TicketCallback(drawn_ticket(tiny_net())).held.violations()
