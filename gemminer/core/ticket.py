"""The ticket: which weights are kept, the values they start from, and where that came from.

It is one immutable value that every method returns and everything else takes. On disk it is one safetensors file: masks
packed eight weights to a byte, the initial state (or the seed it can be drawn from again), JSON in the metadata.
Nothing is ever unpickled, and loading proves by checksum that what comes back is what was saved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError, UsageError, in_words
from gemminer.core.facts import check_facts, sizes
from gemminer.core.files import as_path, atomic
from gemminer.core.fitting import check_shapes, matched, renamed, require_numbers
from gemminer.core.html import table
from gemminer.core.layers import check_removed, neutralise, owned, renamed_layers, without
from gemminer.core.layout import Layout
from gemminer.core.left_dense import LeftDense, parsed
from gemminer.core.masks import Masks, State, check_inside
from gemminer.core.model_state import named_state
from gemminer.core.numbers import strings
from gemminer.core.overlap import Overlap, overlaps
from gemminer.core.pruned import put_masks, read_pruned
from gemminer.core.zeros import zero_pruned

FORMAT = "gemminer.ticket/1"
# Of a ticket that removes layers, which an older reader would train with those layers at zero weights.
SHALLOW = "gemminer.ticket/2"


@dataclass(frozen=True)
class Layer:
    """A parameter's share of a ticket, and a row of a record: `filters` are its output units; a dead one has no
    kept weight.
    """

    name: str
    shape: tuple[int, ...]
    prunable: int
    kept: int
    density: float
    filters: int
    dead_filters: int


class Ticket:
    """Masks, the initial state, and provenance: a sparse subnetwork and where it came from.

    The subnetwork is w_i = initial_i * mask_i for each masked parameter i; every other parameter and buffer starts
    from `initial` as it is. A ticket never changes; two are equal when masks and initial states are, bit for bit.

    Args:
        masks: parameter name -> boolean tensor of that parameter's shape; at least one weight must be kept.
        initial: the model's state before any training (parameters and buffers), masked names included.
        provenance: JSON-serialisable facts: method, options, seed, densities, recipe hash, versions.
        draw: the distribution and seed `initial`'s masked parameters can be drawn from again, if known.
        within: masks inside which the search stayed; None where it was among all weights.
        removed: names of modules that are gone, whole layers: the network computes on without them.

    Raises:
        UsageError: no masks, a mask that is not boolean, or one whose name or shape `initial` does not have; a removed
            layer of which a weight is kept, or that is inside another.

    >>> import torch
    >>> ticket = Ticket({"weight": torch.tensor([[True, False]])}, {"weight": torch.ones(1, 2)})
    >>> ticket.density, ticket.kept, ticket.prunable
    (0.5, 1, 2)
    """

    def __init__(
        self,
        masks: Mapping[str, Tensor],
        initial: Mapping[str, Tensor],
        provenance: Mapping[str, Any] | None = None,
        draw: Draw | None = None,
        within: Mapping[str, Tensor] | None = None,
        removed: Sequence[str] = (),
    ) -> None:
        self._masks = masks if isinstance(masks, Masks) else Masks(masks)
        self._initial = initial if isinstance(initial, State) else State(initial)
        try:
            self._provenance = json.dumps(dict(provenance or {}))
        except (TypeError, ValueError) as error:
            raise UsageError(f"a ticket's provenance must be facts by name that JSON holds: {error}") from None
        self.draw = draw
        if not self._masks:
            raise UsageError("a ticket needs at least one mask")
        for name in self._masks:
            if name not in self._initial:
                raise UsageError(f"the ticket has a mask for {name!r} but no initial weights")
            if (shape := self._initial.shape(name)) != self._masks.shape(name):
                raise UsageError(f"the mask of {name!r} has shape {self._masks.shape(name)}, its weights {shape}")
        if self.kept == 0:
            raise UsageError("a ticket must keep at least one weight")
        self.within = within if isinstance(within, Masks | None) else Masks(within)
        if self.within is not None:
            check_inside(self._masks, self.within)
        self._removed = strings("removed", removed)
        check_removed(self._removed, {name: self._masks.kept(name) for name in self._masks})
        facts = self.provenance
        self._left_dense = parsed(facts.get("left_dense", []))
        self._layouts = _layouts(facts.get("layouts", {}), self._masks)

    @property
    def masks(self) -> Masks:
        """Boolean masks by parameter name (True = kept)."""
        return self._masks

    @property
    def initial(self) -> State:
        """The state every parameter and buffer starts from, by name; masked-out weights included."""
        return self._initial

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the ticket came from (a fresh copy)."""
        return dict(json.loads(self._provenance))

    @property
    def layouts(self) -> dict[str, Layout]:
        """How the axes of each masked parameter are read: which holds the outputs, which the inputs."""
        return {name: self._layouts.get(name, Layout()) for name in self._masks}

    @property
    def removed(self) -> tuple[str, ...]:
        """The names of the modules that are gone; every mask in them is False."""
        return self._removed

    @property
    def left_dense(self) -> tuple[LeftDense, ...]:
        """The weights of two and more dimensions that were not prunable, and why, where the search wrote them down."""
        return self._left_dense

    @property
    def kept(self) -> int:
        """The number of weights kept."""
        return sum(self._masks.kept(name) for name in self._masks)

    @property
    def prunable(self) -> int:
        """d, the number of weights that could have been kept."""
        return sum(math.prod(self._masks.shape(name)) for name in self._masks)

    @property
    def density(self) -> float:
        """kept / prunable, the fraction of prunable weights kept."""
        return self._masks.density

    @property
    def digest(self) -> str:
        """SHA-256 over masks and initial state, and the layers removed, if any: the ticket's identity."""
        removed = json.dumps(sorted(self._removed)) if self._removed else ""
        return hashlib.sha256(f"{self._masks.checksum()}{self._initial.checksum()}{removed}".encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Ticket) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        method = self.provenance.get("method", "unknown method")
        gone = f", {len(self._removed)} layers removed" if self._removed else ""
        return f"Ticket({method}, density {self.density:.4%}, {self.kept} of {self.prunable} weights kept{gone})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = [(x.name, x.prunable, x.kept, f"{x.density:.2%}", x.dead_filters) for x in self.per_layer()]
        return table(repr(self), ("layer", "weights", "kept", "density", "dead filters"), rows)

    def per_layer(self) -> list[Layer]:
        """A row for each masked parameter, in the model's order."""
        rows = []
        for name, mask in self._masks.items():
            alive = self._layouts.get(name, Layout()).units(mask)
            filters, size, kept = alive.numel(), mask.numel(), self._masks.kept(name)
            dead = filters - int(alive.sum())
            rows.append(Layer(name, tuple(mask.shape), size, kept, kept / max(1, size), filters, dead))
        return rows

    def overlap(self, other: Ticket) -> tuple[Overlap, ...]:
        """What both keep of each masked parameter and, last, of all; UsageError for another model's ticket."""
        return overlaps(self._masks, other._masks)

    def replace(
        self,
        masks: Mapping[str, Tensor] | None = None,
        initial: Mapping[str, Tensor] | None = None,
        draw: Draw | None = None,
        removed: Sequence[str] | None = None,
        **provenance: Any,
    ) -> Ticket:
        """A copy with other masks, or another initial state with the `draw` it came from; provenance is added."""
        return Ticket(
            self._masks if masks is None else masks,
            self._initial if initial is None else initial,
            {**self.provenance, **provenance},
            self.draw if initial is None else draw,
            self.within,
            self._removed if removed is None else removed,
        )

    def apply(self, model: nn.Module) -> nn.Module:
        """Write the subnetwork into `model`: the initial state, with masked-out weights exactly zero.

        A removed layer stays in the model and computes nothing: all its parameters are zero (`shallow` takes it out).
        Returns the same model. Raises UsageError, before anything is written, where names or shapes differ, or where
        the model holds no numbers (lazy layers, the meta device).
        """
        own = self._written(model)
        tensors = named_state(model)
        with _writing(tensors):
            zero_pruned((tensors[name], mask) for name, mask in own.masks.items())
            neutralise(model, own.removed)
        return model

    def shallow(self, model: nn.Module) -> nn.Module:
        """A copy of `model` with identities in place of the removed layers: a smaller plain module, to run anywhere.

        Its values are the model's, its names a part of the model's; `shortened` is the ticket of it. Raises UsageError
        as `apply` does.

        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
        >>> masks = {"0.weight": torch.ones(2, 2).bool(), "1.0.weight": torch.zeros(2, 2).bool()}
        >>> Ticket(masks, net.state_dict(), removed=["1"]).shallow(net)
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): Identity()
        )
        """
        return without(model, self.fitted(model).removed)

    def shortened(self) -> Ticket:
        """This ticket without what it says of removed layers: the ticket of `shallow(model)`."""
        if not self._removed:
            return self
        masks, initial, within = (
            None if tensors is None else {n: tensors[n] for n in tensors if not owned(n, self._removed)}
            for tensors in (self._masks, self._initial, self.within)
        )
        return Ticket(masks or {}, initial or {}, self.provenance, self.draw, within)

    def start_from(self, model: nn.Module) -> None:
        """Write the initial state into `model`, nothing masked; raises UsageError as `apply` does."""
        self._written(model)

    def _written(self, model: nn.Module) -> Ticket:
        """This ticket by the model's names, after its initial state was written into it."""
        require_numbers(model)
        own = self.fitted(model)
        tensors = named_state(model)
        for name, value in own.initial.items():
            if value.is_complex() and not tensors[name].is_complex():
                raise UsageError(f"this ticket is of another model: {name!r} holds complex numbers in the ticket alone")
        with _writing(tensors):
            for name, value in own.initial.items():
                tensors[name].copy_(value)
        return own

    def fitted(self, model: nn.Module) -> Ticket:
        """This ticket by the names of `model`: without wrappers' prefixes, tied tensors once, under their first name.

        Raises UsageError, in one sentence, unless `model` has exactly the ticket's parameters and buffers.
        """
        tensors = named_state(model)
        found = matched(self._initial, model)
        check_shapes(found, self._initial, tensors)
        if all(name == own for name, own in found.items()):
            return self
        facts = self.provenance
        if "layouts" in facts:
            facts["layouts"] = {found.get(name, name): layout for name, layout in facts["layouts"].items()}
        initial = renamed("initial weights", self._initial, found)
        within = None if self.within is None else renamed("masks", self.within, found)
        draw = self.draw
        if draw is not None:  # the seeds are of the names
            drawn = {found[name]: draw.names.get(name, name) for name in self._masks}
            draw = replace(draw, names={name: old for name, old in drawn.items() if name != old})
        removed = renamed_layers(self._removed, self._masks, found)
        return Ticket(renamed("masks", self._masks, found), initial, facts, draw, within, removed)

    @classmethod
    def given(cls, ticket: object) -> Ticket:
        """A ticket, or the one in the file whose path is given; raises UsageError for anything else."""
        if isinstance(ticket, cls):
            return ticket
        if isinstance(ticket, (str, os.PathLike)):
            return cls.load(as_path("a ticket's file", ticket))
        raise UsageError(f"ticket must be a gemminer.Ticket or the path of its file, not a {type(ticket).__name__}")

    def check_fits(self, model: nn.Module) -> None:
        """Raise UsageError, in one sentence, unless `model` has exactly the ticket's parameters and buffers."""
        self.fitted(model)

    def to_prune(self, model: nn.Module) -> nn.Module:
        """Write the ticket into `model`, pruned as `torch.nn.utils.prune` does it: `weight_orig * weight_mask`.

        Afterwards `prune.is_pruned`, `prune.remove` and every other tool for such models know it; `weight_orig` has the
        initial values of pruned weights too. Returns the same model. Raises UsageError as `apply` does.

        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 2))
        >>> ticket = Ticket({"0.weight": torch.eye(2, 3).bool()}, net.state_dict())
        >>> sorted(ticket.to_prune(net).state_dict())
        ['0.bias', '0.weight_mask', '0.weight_orig']
        >>> Ticket.from_prune(net) == ticket
        True
        """
        if self._removed:
            raise UsageError(
                "torch.nn.utils.prune knows no removed layers: prune the network without them, "
                "ticket.shortened().to_prune(ticket.shallow(model))"
            )
        put_masks(model, self._written(model).masks)
        return model

    @classmethod
    def from_prune(cls, model: nn.Module) -> Ticket:
        """The ticket of a model that `torch.nn.utils.prune` has pruned, which is left as it is.

        It starts from the values that the model has now, those under the masks too (`weight_orig`), and fits the plain
        model: one made anew, or this one after `prune.remove`. Weights without a mask stay dense. Raises UsageError
        where nothing is pruned so.
        """
        masks, state, facts = read_pruned(model)
        return cls(masks, state, facts)

    def save(self, path: str | Path, *, weights: bool = True) -> Path:
        """Write one safetensors file, atomically; a file that is there is replaced, whosever it is.

        With `weights=False` the masked parameters' initial values are left out, to be drawn again from `draw` at
        loading (ResNet-20: 45 KB instead of 1.1 MB). Raises UsageError where no draw gives them back bit for bit.
        """
        path = as_path("a ticket's file", path)
        left_out = set() if weights else self._redrawable()
        tensors = _packed("mask", self._masks) | ({} if self.within is None else _packed("within", self.within))
        tensors |= {f"initial/{name}": v for name, v in self._initial.items() if name not in left_out}
        header: dict[str, Any] = {
            "format": SHALLOW if self._removed else FORMAT,
            "shapes": {name: self._masks.shape(name) for name in self._masks},
            "drawn": sorted(left_out),
            "draw": {n: value for n, value in asdict(self.draw).items() if value != {}} if self.draw else None,
            "provenance": self.provenance,
            **({"removed": list(self._removed)} if self._removed else {}),
        }
        header["checksum"] = {
            "masks": self._masks.checksum(),
            "initial": self._initial.checksum(),
            "facts": _facts_checksum(header),
            **({} if self.within is None else {"within": self.within.checksum()}),
        }
        with atomic(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"gemminer": json.dumps(header, separators=(",", ":"))}))
        return path

    def _redrawable(self) -> set[str]:
        if self.draw is None:
            raise UsageError(
                "this ticket's initial weights were not drawn by gemminer, so they cannot be left out: "
                "save it with weights"
            )
        shapes = {name: torch.Size(self._masks.shape(name)) for name in self._masks}
        drawn = self.draw.weights(shapes, self._layouts)
        own = {name: self._initial[name] for name in drawn}
        if any(own[name].dtype != w.dtype or not torch.equal(w, own[name]) for name, w in drawn.items()):
            raise UsageError("this ticket's initial weights differ from its recorded draw: save it with weights")
        return set(drawn)

    @classmethod
    def load(cls, path: str | Path) -> Ticket:
        """Read a ticket's file, or `ticket.safetensors` in a folder.

        Raises GemminerError with one sentence on a missing, truncated, corrupt or foreign file.
        """
        path = as_path("a ticket's file", path)
        path = path / "ticket.safetensors" if path.is_dir() else path
        try:
            return cls._load(path)
        except (OSError, SafetensorError) as error:
            if not path.is_file():
                raise GemminerError(f"there is no ticket file {path}") from None
            raise GemminerError(f"{path} is not a ticket, or it is truncated: {error}") from None
        except UsageError as error:
            raise GemminerError(f"{path} is a damaged ticket: {error}") from None
        except GemminerError as error:
            raise GemminerError(f"{path}: {error}") from None
        except Exception as error:  # whatever bytes may do to those who read them
            raise GemminerError(f"{path} is a damaged ticket ({in_words(error)})") from None

    @classmethod
    def _load(cls, path: Path) -> Ticket:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("gemminer")
            if text is None:
                raise GemminerError("it is a safetensors file, but not a gemminer ticket")
            header = json.loads(text)
            if not isinstance(header, dict):
                raise GemminerError("it is a damaged ticket: its header is no JSON object")
            if (found := header.get("format")) not in (FORMAT, SHALLOW):
                ours = str(found).startswith(FORMAT.partition("/")[0] + "/")
                what = "it" if ours else "it is not a gemminer ticket: it"
                raise GemminerError(f"{what} has format {found!r:.50}; this version reads {FORMAT!r} and {SHALLOW!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: sizes(shape) for name, shape in header["shapes"].items()}
        masks = _read_masks("mask", tensors, shapes, header["checksum"]["masks"])
        within = header["checksum"].get("within")
        within = within if within is None else _read_masks("within", tensors, shapes, within)
        if _facts_checksum(header) != header["checksum"]["facts"]:
            raise GemminerError("its provenance is damaged: the checksum differs from the one saved with it")
        check_facts(header["provenance"])
        draw = Draw(**header["draw"]) if header["draw"] else None
        initial = {n.removeprefix("initial/"): v for n, v in tensors.items() if n.startswith("initial/")}
        if header["drawn"]:
            if draw is None:
                raise GemminerError("the initial weights are missing and no draw is recorded")
            layouts = _layouts(header["provenance"].get("layouts", {}), masks)
            initial |= draw.weights({name: torch.Size(shapes[name]) for name in header["drawn"]}, layouts)
        state = State(initial)
        if state.checksum() != header["checksum"]["initial"]:
            what = "drawn again they differ (another PyTorch draws otherwise)" if header["drawn"] else "damaged"
            raise GemminerError(f"the initial weights are not those saved: {what}")
        removed = header["removed"] if found == SHALLOW else header.get("removed", ())
        return cls(masks, state, header["provenance"], draw, within, removed)


def _packed(what: str, masks: Masks) -> dict[str, Tensor]:
    """The tensors that hold masks in a file, under this name."""
    return {f"{what}/{name}": torch.from_numpy(masks.packed(name)) for name in masks}


def _read_masks(
    what: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], checksum: object
) -> Masks:
    """The masks that a file holds under this name; raises GemminerError where they are not those saved."""
    masks = Masks.from_bits({name: tensors[f"{what}/{name}"].numpy() for name in shapes}, shapes)
    if masks.checksum() != checksum:
        raise GemminerError("the masks are damaged: their checksum differs from the one saved with them")
    return masks


def _writing(tensors: Mapping[str, Tensor]) -> contextlib.AbstractContextManager[Any]:
    """A block in which these tensors may be written; those of an inference-mode model are in that mode only."""
    return torch.inference_mode() if any(t.is_inference() for t in tensors.values()) else torch.no_grad()


def _layouts(given: Any, masks: Masks) -> dict[str, Layout]:
    """The layouts that are not the default, of a ticket's facts; older files have none."""
    if not isinstance(given, Mapping):
        raise GemminerError("its layouts are no JSON object")
    return {name: Layout.from_json(value, masks.shape(name)) for name, value in given.items() if name in masks}


def _facts_checksum(header: Mapping[str, Any]) -> str:
    """SHA-256 over a header's facts about where the ticket came from."""
    facts = [header["drawn"], header["draw"], header["provenance"]]
    facts += [header["removed"]] if "removed" in header else []  # as files are that have none
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
