"""Tickets: values that cannot change, files that are whole or refused."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gemminer
from gemminer import models
from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.masks import Masks, State
from gemminer.core.model_state import named_state
from gemminer.core.ticket import FORMAT, Ticket, _facts_checksum
from tests.helpers import drawn_ticket, tiny_net
from tests.mutations.damage import packed, unpacked
from tests.mutations.kinds import mutate
from tests.mutations.tickets import files, sign_ticket

# --- the value -------------------------------------------------------------------------------------------------


def test_counts_by_hand() -> None:
    masks = {"a": torch.tensor([[True, False, True], [False, False, False]]), "b": torch.tensor([[True]])}
    ticket = Ticket(masks, {"a": torch.ones(2, 3), "b": torch.ones(1, 1), "bias": torch.zeros(2)})
    assert (ticket.kept, ticket.prunable, ticket.density) == (3, 7, 3 / 7)
    first, second = ticket.per_layer()
    assert (first.name, first.shape, first.prunable, first.kept) == ("a", (2, 3), 6, 2)
    assert (first.density, first.filters, first.dead_filters) == (2 / 6, 2, 1)  # row 1 keeps nothing
    assert second.dead_filters == 0
    assert repr(ticket) == "Ticket(unknown method, density 42.8571%, 3 of 7 weights kept)"


def test_a_ticket_cannot_be_changed_through_what_it_was_given_or_gives(ticket: Ticket) -> None:
    mask, weight, facts = torch.tensor([[True, False]]), torch.ones(1, 2), {"options": {"lr": 1}}
    made = Ticket({"w": mask}, {"w": weight}, facts)
    digest = made.digest
    mask[:], weight[:] = False, 7.0
    facts["options"]["lr"] = 2
    made.masks["w"][:] = False
    made.initial["w"].zero_()
    made.provenance["options"]["lr"] = 3
    made.masks.packed("w")[:] = 0
    assert made.digest == digest
    assert made.provenance == {"options": {"lr": 1}}
    assert made.masks["w"].tolist() == [[True, False]]
    with pytest.raises(AttributeError):
        made.masks = {}  # type: ignore[misc, assignment]
    with pytest.raises(TypeError):
        made.initial["w"] = weight  # type: ignore[index]
    assert copy.deepcopy(ticket) == ticket


def test_equality_and_hash_are_of_masks_and_weights(ticket: Ticket) -> None:
    same = Ticket(dict(ticket.masks), dict(ticket.initial), {"method": "another"})
    assert same == ticket
    assert len({same, ticket}) == 1
    name = next(iter(ticket.masks))
    flipped = dict(ticket.masks)
    flipped[name] = ~flipped[name]
    moved = {**ticket.initial, name: ticket.initial[name] + 1e-7}
    assert ticket.replace(masks=flipped) != ticket
    assert ticket.replace(initial=moved) != ticket
    assert ticket != "ticket"


@given(st.data())
def test_packed_masks_come_back_bit_for_bit(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    flags = data.draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
    mask = torch.tensor(flags).reshape(shape)
    packed = Masks({"w": mask})
    again = Masks.from_bits({"w": packed.packed("w")}, {"w": shape})
    assert torch.equal(packed["w"], mask)
    assert torch.equal(again["w"], mask)
    assert packed.kept("w") == sum(flags)
    assert packed.packed("w").size == -(-mask.numel() // 8)  # eight weights to a byte


def test_a_mask_of_a_transposed_weight_keeps_its_meaning() -> None:
    mask = torch.tensor([[True, False, False], [False, True, True]])
    assert torch.equal(Masks({"w": mask.t()})["w"], mask.t())
    image = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
    assert State({"w": image}).checksum() == State({"w": image.contiguous()}).checksum()
    assert torch.equal(Masks({"w": image > 0.5})["w"], image > 0.5)


def test_a_shape_is_looked_up_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making and checking a ticket would copy the whole model otherwise."""
    model = nn.Linear(3, 2)
    state = State(model.state_dict())
    monkeypatch.setattr(State, "__getitem__", lambda *_: pytest.fail("copied"))
    assert state.shape("weight") == (2, 3)
    ticket = Ticket({"weight": torch.ones(2, 3, dtype=torch.bool)}, state)
    ticket.check_fits(model)
    with pytest.raises(UsageError, match=r"has shape \(2, 3\) in the ticket, \(2, 4\) in the model"):
        ticket.check_fits(nn.Linear(4, 2))
    with pytest.raises(UsageError, match=r"has shape \(3, 2\), its weights \(2, 3\)"):
        Ticket({"weight": torch.ones(3, 2, dtype=torch.bool)}, state)


@pytest.mark.parametrize(
    ("masks", "initial", "text"),
    [
        ({}, {}, "needs at least one mask"),
        ({"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2)}, "must be a tensor of torch.bool"),
        ({"w": [[True]]}, {"w": torch.ones(1, 1)}, "must be a tensor of torch.bool"),
        ({"w": torch.ones(2, 2).bool()}, {}, "a mask for 'w' but no initial weights"),
        ({"w": torch.ones(2, 2).bool()}, {"w": torch.ones(4)}, r"shape \(2, 2\), its weights \(4,\)"),
        ({"w": torch.zeros(2, 2).bool()}, {"w": torch.ones(2, 2)}, "keep at least one weight"),
    ],
)
def test_what_is_not_a_ticket_is_refused(masks: Any, initial: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Ticket(masks, initial)


# --- applied to a model ----------------------------------------------------------------------------------------


def test_apply_writes_the_subnetwork_and_leaves_the_rest(ticket: Ticket) -> None:
    model = tiny_net(seed=9)
    assert ticket.apply(model) is model
    state = dict(model.state_dict())
    for name, mask in ticket.masks.items():
        assert torch.equal(state[name], ticket.initial[name] * mask)
        assert state[name][~mask].count_nonzero() == 0
    for name in set(state) - set(ticket.masks):
        assert torch.equal(state[name], ticket.initial[name])


def test_apply_to_another_model_writes_nothing(ticket: Ticket) -> None:
    narrow, other = tiny_net(seed=1), nn.Sequential(nn.Linear(6, 16))
    narrow[0] = nn.Linear(6, 15)  # the names are the same, one shape differs
    before = {n: t.clone() for n, t in narrow.state_dict().items()}
    with pytest.raises(UsageError, match=r"another model: '0\.weight' has shape \(16, 6\) in the ticket, \(15, 6\)"):
        ticket.apply(narrow)
    assert all(torch.equal(t, before[n]) for n, t in narrow.state_dict().items())
    with pytest.raises(UsageError, match=r"another model: the model has no '1\.weight'"):
        ticket.apply(other)
    longer = tiny_net()
    longer.append(nn.Linear(3, 3))
    with pytest.raises(UsageError, match=r"the ticket has no '6\.weight', '6\.bias'$"):
        ticket.apply(longer)


def test_tied_weights_are_held_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    assert list(named_state(model)) == ["0.weight"]
    ticket = drawn_ticket(model, 0.5)
    ticket.apply(model)
    assert ticket.prunable == 16
    assert model[2].weight is model[0].weight
    assert int(model[2].weight.count_nonzero()) == 8


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [True, False])
def test_a_file_gives_back_the_same_ticket(ticket: Ticket, tmp_path: Path, weights: bool) -> None:
    path = ticket.save(tmp_path / "deep" / "er" / "gem.safetensors", weights=weights)
    again = Ticket.load(str(path))
    assert again == ticket
    assert again.provenance == ticket.provenance
    assert again.draw == ticket.draw
    assert list(again.masks) == list(ticket.masks)  # the model's order, which a safetensors file does not keep
    assert again.per_layer() == ticket.per_layer()
    assert [p.name for p in path.parent.iterdir()] == ["gem.safetensors"]
    again.save(tmp_path / "again.safetensors", weights=weights)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_every_type_of_state_comes_back(tmp_path: Path) -> None:
    state = {
        "w": torch.randn(3, 3, dtype=torch.float64),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "nan": torch.tensor([float("nan"), float("inf")]),
    }
    ticket = Ticket({"w": torch.eye(3).bool()}, state)
    again = Ticket.load(ticket.save(tmp_path / "t.safetensors"))
    assert again == ticket
    assert all(again.initial[n].dtype == t.dtype and again.initial[n].shape == t.shape for n, t in state.items())


def test_size_of_resnet20(tmp_path: Path) -> None:
    model = models.build("resnet20")
    ticket = drawn_ticket(model, 0.0144)
    assert ticket.prunable == 268_336
    assert ticket.save(tmp_path / "full.safetensors").stat().st_size <= 1_200_000
    small = ticket.save(tmp_path / "small.safetensors", weights=False)
    assert small.stat().st_size <= 60_000
    assert Ticket.load(small) == ticket


def test_weights_are_left_out_only_where_a_draw_gives_them_back(ticket: Ticket, tmp_path: Path) -> None:
    own = ticket.replace(initial=dict(ticket.initial))  # the same values, the draw unknown
    with pytest.raises(UsageError, match="not drawn by gemminer"):
        own.save(tmp_path / "t", weights=False)
    name = next(iter(ticket.masks))
    moved = Ticket(ticket.masks, {**ticket.initial, name: ticket.initial[name] * 2}, {}, ticket.draw)
    with pytest.raises(UsageError):
        moved.save(tmp_path / "t", weights=False)
    double = Ticket(ticket.masks, {n: t.double() for n, t in ticket.initial.items()}, {}, ticket.draw)
    with pytest.raises(UsageError):  # a draw is float32
        double.save(tmp_path / "t", weights=False)
    assert list(tmp_path.iterdir()) == []


def test_a_ticket_knows_inside_what_it_was_searched(tmp_path: Path) -> None:
    net = tiny_net()
    own, outer = drawn_ticket(net, 0.1), {n: m.clone() for n, m in drawn_ticket(net, 0.1).masks.items()}
    for mask in outer.values():
        mask[0] = True
    ticket = Ticket(own.masks, own.initial, {}, own.draw, outer)
    path = ticket.save(tmp_path / "t")
    fitted = ticket.fitted(nn.ModuleDict({"module": net})["module"])
    for same in (Ticket.load(path), ticket.replace(check="none"), fitted, copy.deepcopy(ticket)):
        assert same.within is not None
        assert all(torch.equal(same.within[n], mask) for n, mask in outer.items())
    old = Ticket(own.masks, own.initial, {})
    assert (old == ticket, Ticket.load(old.save(tmp_path / "old")).within) == (True, None)
    with pytest.raises(UsageError, match=r"keeps weights of '0.weight' outside of its within"):
        ticket.replace(masks={**own.masks, "0.weight": ~outer["0.weight"]})
    with pytest.raises(UsageError, match="must have the names and shapes of its masks"):
        Ticket(own.masks, own.initial, {}, None, {"0.weight": outer["0.weight"]})
    tensors = load_file(path)
    for damaged in (
        tensors | {"within/0.weight": tensors["mask/0.weight"]},
        {n: tensors[n] for n in list(tensors)[:-1]},
    ):
        fresh = {n: t.clone() for n, t in damaged.items()}
        save_file(fresh, tmp_path / "t", metadata={"gemminer": json.dumps(header_of(ticket.save(path)))})
        with pytest.raises(GemminerError, match="damaged"):
            Ticket.load(path)


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["gemminer"]))


def rewritten(path: Path, **changes: Any) -> Path:
    """The file with fields of its header replaced and, unless it is what lies, their checksum made to fit."""
    header = {**header_of(path), **changes}
    if not {"checksum", "provenance"} & set(changes):
        header["checksum"]["facts"] = _facts_checksum(header)
    save_file(load_file(path), path, metadata={"gemminer": json.dumps(header)})
    return path


def test_a_redraw_is_proved_by_its_checksum(ticket: Ticket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ticket.save(tmp_path / "t.safetensors", weights=False)
    original = Draw.weights

    def another(self: Draw, shapes: Any, layouts: Any) -> dict[str, Tensor]:
        return {n: w + 0 if i else -w for i, (n, w) in enumerate(original(self, shapes, layouts).items())}

    monkeypatch.setattr(Draw, "weights", another)  # as if another PyTorch drew otherwise
    with pytest.raises(GemminerError, match="drawn again they differ"):
        Ticket.load(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "gemminer.ticket/9"}, "has format 'gemminer.ticket/9'; this version reads"),
        ({"format": None}, "has format None"),
        ({"draw": None}, "missing and no draw is recorded"),
        ({"draw": {"kind": "kaiming", "seed": 0}}, "unknown initialiser 'kaiming'"),
        ({"draw": {"kind": "signed-constant", "sed": 0}}, "damaged ticket"),
        ({"draw": {"kind": "signed-constant", "seed": 4}}, "drawn again they differ"),
        ({"draw": {"names": {"0.weight": "1.weight"}}}, "drawn again they differ"),
        ({"draw": {"names": ["0.weight"]}}, "must be names by name"),
        ({"shapes": {"0.weight": [16, 6]}}, "checksum differs"),
        ({"shapes": {"0.weight": [6, 16], "3.weight": [12, 16], "5.weight": [3, 12]}}, "checksum differs"),
        ({"shapes": {"0.weight": [16, 7], "3.weight": [12, 16], "5.weight": [3, 12]}}, "does not hold 112 bits"),
        ({"shapes": {"none.weight": [16, 6]}}, "damaged ticket"),
        ({"shapes": {}}, "the masks are damaged"),
        ({"shapes": None}, "ticket"),
        ({"shapes": []}, "ticket"),
        ({"checksum": {}}, "damaged ticket"),
        ({"checksum": None}, "damaged ticket"),
        ({"drawn": ["none.weight"]}, "ticket"),
        ({"provenance": {"method": "another"}}, "its provenance is damaged"),
        ({"provenance": 7}, "provenance is damaged"),
    ],
)
def test_a_header_that_lies_is_refused(ticket: Ticket, tmp_path: Path, changes: Any, text: str) -> None:
    path = rewritten(ticket.save(tmp_path / "t.safetensors", weights=False), **changes)
    with pytest.raises(GemminerError, match=text) as caught:
        Ticket.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ["[]", "7", "null", '"text"', "{", ""])
def test_a_header_that_is_no_object_is_refused(ticket: Ticket, tmp_path: Path, header: str) -> None:
    path = ticket.save(tmp_path / "t.safetensors")
    save_file(load_file(path), path, metadata={"gemminer": header})
    with pytest.raises(GemminerError, match=r"t\.safetensors"):
        Ticket.load(path)


def test_bits_behind_the_last_weight_are_refused(tmp_path: Path) -> None:
    ticket = Ticket({"w": torch.ones(1, 3).bool()}, {"w": torch.ones(1, 3)})  # 3 of a byte's 8 bits
    path = ticket.save(tmp_path / "t.safetensors")
    metadata = {"gemminer": json.dumps(header_of(path))}
    save_file({**load_file(path), "mask/w": torch.tensor([0b11100001], dtype=torch.uint8)}, path, metadata=metadata)
    with pytest.raises(GemminerError, match="bits set behind its last weight"):
        Ticket.load(path)


def test_files_that_are_no_tickets(tmp_path: Path) -> None:
    absent, folder, text, foreign = (tmp_path / n for n in ("absent", "folder", "text", "foreign"))
    folder.mkdir()
    text.write_text("these are not the weights you are looking for")
    save_file({"w": torch.ones(2)}, foreign)
    for path, sentence in [
        (absent, f"there is no ticket file {absent}"),
        (folder, f"there is no ticket file {folder / 'ticket.safetensors'}"),
        (text, f"{text} is not a ticket, or it is truncated"),
        (foreign, f"{foreign}: it is a safetensors file, but not a gemminer ticket"),
    ]:
        with pytest.raises(GemminerError) as caught:
            Ticket.load(path)
        assert str(caught.value).startswith(sentence)
    save_file({"w": torch.ones(2)}, foreign, metadata={"format": "pt"})
    with pytest.raises(GemminerError, match="not a gemminer ticket"):
        Ticket.load(foreign)


def test_every_truncation_is_refused(ticket: Ticket, tmp_path: Path) -> None:
    whole = ticket.save(tmp_path / "t.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(GemminerError, match=r"cut\.safetensors is not a ticket, or it is truncated"):
            Ticket.load(cut)


@pytest.mark.parametrize("weights", [True, False])
def test_a_flipped_bit_is_refused_or_harmless(ticket: Ticket, tmp_path: Path, weights: bool) -> None:
    """Wherever it is: in the length, the header, the masks, the weights. 1e-05 and 1E-05 are the same number."""
    whole = ticket.save(tmp_path / "t.safetensors", weights=weights).read_bytes()
    broken = tmp_path / "broken.safetensors"
    source = random.Random(0)
    places = [(byte, source.randrange(8)) for byte in range(0, len(whole), 7)]
    places += [(len(whole) - 1 - i, source.randrange(8)) for i in range(20)]
    refused = 0
    for byte, bit in places:
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << bit
        broken.write_bytes(damaged)
        try:
            found = Ticket.load(broken)
        except GemminerError as error:
            assert "broken.safetensors" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert found == ticket
            assert (found.provenance, found.draw) == (ticket.provenance, ticket.draw)
    assert refused > 0.95 * len(places)


def test_a_flipped_bit_says_what_is_damaged(ticket: Ticket, tmp_path: Path) -> None:
    path = ticket.save(tmp_path / "t.safetensors")
    metadata = {"gemminer": json.dumps(header_of(path))}
    tensors = load_file(path)
    for name, text in [("mask/0.weight", "the masks are damaged"), ("initial/0.bias", "not those saved: damaged")]:
        damaged = {n: t.clone() for n, t in tensors.items()}
        damaged[name].view(torch.uint8).reshape(-1)[0] ^= 1
        save_file(damaged, path, metadata=metadata)
        with pytest.raises(GemminerError, match=text):
            Ticket.load(path)


def test_the_format_is_versioned(ticket: Ticket, tmp_path: Path) -> None:
    assert header_of(ticket.save(tmp_path / "t"))["format"] == FORMAT == "gemminer.ticket/1"
    assert gemminer.Ticket is Ticket


def test_mutated_tickets_are_refused_in_one_sentence(tmp_path: Path) -> None:
    found, faults = mutate("tickets", range(150), tmp_path)
    assert not faults
    assert found["applied"] > 10


@pytest.mark.parametrize("change", ["shape", "exclude", "options", "provenance", "draw", "float8"])
def test_a_signed_file_of_other_types_is_no_ticket(tmp_path: Path, change: str) -> None:
    meta, tensors = unpacked(files(tmp_path)["whole"])
    if change == "shape":
        meta["shapes"]["0.weight"] = [-3, 1, -3, 3]
    elif change == "float8":
        tensors["mask/0.weight"] = ("F8_E4M3", *tensors["mask/0.weight"][1:])
    elif change == "draw":
        meta["draw"]["fan_scale"] = 10**400
    elif change == "provenance":
        meta["provenance"] = [["method", "test"]]
    else:
        meta["provenance"][change] = 3
    with contextlib.suppress(Exception):
        sign_ticket(meta, tensors)
    (tmp_path / "evil").write_bytes(packed(meta, tensors))
    with pytest.raises(GemminerError) as caught:
        Ticket.load(tmp_path / "evil")
    assert len(str(caught.value).splitlines()) == 1
