"""Which batch normalizations can be folded into which operations, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batchnorm.core.graph import Graph, Operation
from batchnorm.core.record import LayerRecord

from .fold_edits import Edit, Fold, No, opened, unusable
from .folding import Affine, affine_of, fits

__all__ = ["Edit", "Fold", "Plan", "Refusal", "planned"]

LINEAR = ("conv", "conv_transpose", "dense")
VIEWS = ("identity", "dropout", "stochastic_depth", "reshape")
SHOWN = 3
BORDER = "it comes before a {} that {}, and the border would see the shift: what lies outside is 0 there, not the shift"
BETWEEN = {
    "activation": "an activation", "pad": "a padding", "pool": "a pooling", "dropout": "a dropout",
    "reshape": "a reshape", "add": "an addition", "concat": "a concatenation", "stochastic_depth": "stochastic depth",
    "elementwise_linear": "a multiplication or addition", "batch_norm": "another batch normalization",
    "identity": "a mere name", "other": "another operation",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Refusal:
    """A batch normalization that stays, and why."""

    layer: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is folded, and what is not."""

    edits: tuple[Edit, ...]
    refused: tuple[Refusal, ...]

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Every fold, in the order of the graph."""
        return tuple(fold for edit in self.edits for fold in edit.folds)

    @property
    def terms(self) -> list[int]:
        """For each edited operation, how many products make one of its outputs."""
        return [edit.linear.terms for edit in self.edits]


def planned(graph: Graph, records: Sequence[LayerRecord], ranks: dict[str, int], without: Sequence[str] = ()) -> Plan:
    """Plan the folding of every batch normalization of a model.

    Parameters
    ----------
    graph : Graph
        The model's.
    records : sequence of LayerRecord
        Its batch normalizations, with arrays.
    ranks : dict
        Layer name -> number of axes of its input, where an engine has shown it.
    without : sequence of str
        Names of layers that are left as they are.
    """
    return _Planner(graph, {record.name: record for record in records}, ranks, without).plan()


class _Planner:
    def __init__(
        self, graph: Graph, records: dict[str, LayerRecord], ranks: dict[str, int], without: Sequence[str]
    ) -> None:
        self._graph = graph
        self._records = records
        self._ranks = ranks
        self._without = without
        self._edits: dict[int, Edit] = {}
        self._gone: set[str] = set()  # the outputs of what is folded

    def plan(self) -> Plan:
        refused: dict[str, str] = dict.fromkeys(self._without, "it was left out as asked")
        waiting = [each for each in self._graph.operations if each.kind == "batch_norm" and each.name not in refused]
        seen = {each.name for each in waiting}
        before = 0
        while len(waiting) != before:  # what is folded may bring the next one beside a convolution
            before = len(waiting)
            waiting = [norm for norm in waiting if not self._folded(norm, refused)]
        for name in self._records:
            if name not in seen:
                refused.setdefault(name, "the graph does not show where it is called")
        order = tuple(Refusal(name, refused[name]) for name in self._records if name in refused)
        return Plan(tuple(self._edits.values()), order)

    def _folded(self, norm: Operation, refused: dict[str, str]) -> bool:
        try:
            self._fold(norm)
        except No as why:
            refused[norm.name] = str(why)
            return False
        refused.pop(norm.name, None)
        return True

    def _fold(self, norm: Operation) -> None:
        affine = self._affine(norm)
        try:
            self._into_producer(norm, affine)
        except No as behind:
            try:
                self._into_consumer(norm, affine)
            except No as before:
                raise No(self._why(norm, str(behind), str(before))) from None

    def _why(self, norm: Operation, behind: str, before: str) -> str:
        """The side on which a linear operation stands has the reason that counts."""
        maker, _, _ = self._way_back(norm)
        if maker is not None and maker.kind in LINEAR:
            return behind
        if any(user.kind in LINEAR for user in self._way_on(norm)[1]):
            return before
        return f"no convolution or dense layer is beside it: {behind}, {before}"

    def _affine(self, norm: Operation) -> Affine:
        record = self._records.get(norm.name)
        if record is None:
            raise No("its arrays are not in the file")
        if norm.shared or len(list(self._graph.calls(norm.name))) > 1:
            raise No("it is shared: it is called more than once, or its arrays belong to another layer, too")
        if (why := unusable(record, norm)) is not None:
            raise No(why)
        affine = affine_of(record)
        if not np.all(np.isfinite(affine.scale) & np.isfinite(affine.shift)):
            raise No("its scale or shift is not finite in some channel")
        return affine

    def _way_back(self, norm: Operation) -> tuple[Operation | None, list[Operation], list[str]]:
        """What feeds it, and the operations and values between: identities and folded layers."""
        value = norm.inputs[0]
        steps, values = [norm], [value]
        maker = self._graph.producer(value)
        while maker is not None and self._is_nothing(maker):
            steps.append(maker)
            values.append(maker.inputs[0])
            maker = self._graph.producer(maker.inputs[0])
        return maker, steps, values

    def _is_nothing(self, operation: Operation) -> bool:
        is_identity = operation.kind == "identity" and len(operation.inputs) == len(operation.outputs) == 1
        return is_identity or (operation.kind == "batch_norm" and operation.outputs[0] in self._gone)

    def _into_producer(self, norm: Operation, affine: Affine) -> None:
        maker, steps, values = self._way_back(norm)
        if maker is None:
            raise No("it is fed by the model's input")
        if maker.kind not in LINEAR:
            raise No(f"{BETWEEN[maker.kind]} ({maker.name}) feeds it")
        others = [user.name for value in values for user in self._graph.consumers(value) if user not in steps]
        if others:
            raise No(f"{maker.name} has a second consumer: {_some(others)}")
        if any(self._graph.leaves(value) for value in values):
            raise No(f"{maker.name} has a second consumer: what it gives is an output of the model, too")
        if activation := maker.settings.get("activation"):
            raise No(f"{maker.name} applies {activation} before it")
        self._merge(norm, maker, affine, "after")

    def _way_on(self, norm: Operation) -> tuple[list[str], list[Operation], bool]:
        """The names of what it feeds, the operations, and whether it is an output; what lies between passed over."""
        value = norm.outputs[0]
        while not self._graph.leaves(value):
            users = self._graph.consumers(value)
            if len(users) != 1 or not self._is_nothing(users[0]):
                return [user.name for user in users], list(users), False
            value = users[0].outputs[0]
        users = self._graph.consumers(value)
        return [*(user.name for user in users), "the model's output"], list(users), True

    def _into_consumer(self, norm: Operation, affine: Affine) -> None:
        names, users, leaves = self._way_on(norm)
        if len(names) != 1 or leaves:
            raise No(f"it has {len(names)} consumers ({_some(names)})" if len(names) > 1 else "it feeds nothing else")
        (user,) = users
        if user.kind not in LINEAR:
            raise No(f"it feeds {BETWEEN[user.kind]} ({user.name})")
        if user.settings.get("separable"):
            raise No(f"{user.name} is a separable convolution, which has two kernels")
        if np.any(affine.shift != 0):
            if user.kind == "conv_transpose":
                raise No(BORDER.format("transposed convolution", "gives its border fewer taps"))
            if user.settings.get("pads"):
                raise No(BORDER.format("convolution", "pads"))
        if (writer := self._written_over(norm.inputs[0])) is not None:
            raise No(f"{writer.name} works in place on what feeds it, and {user.name} reads that later")
        self._merge(norm, user, affine, "before")

    def _written_over(self, value: str) -> Operation | None:
        """An operation that may write into a value, or into what is the same memory under another name."""
        for user in self._graph.consumers(value):
            if user.settings.get("in_place"):
                return user
            found = self._written_over(user.outputs[0]) if user.kind in VIEWS and user.outputs else None
            if found is not None:
                return found
        return None

    def _merge(self, norm: Operation, target: Operation, affine: Affine, where: str) -> None:
        edit = self._edits.get(id(target)) or opened(target)
        channels = self._records[norm.name].channels
        if not fits(edit.linear, channels, before=where == "before"):
            raise No(f"it has {channels} channels, and {target.name} {edit.linear.outputs}")
        self._check_axis(norm, target)
        edit.linear = edit.linear.then(affine) if where == "after" else edit.linear.after(affine)
        edit.folds.append(Fold(norm.name, target.name, where, norm))
        self._edits[id(target)] = edit
        self._gone.add(norm.outputs[0])

    def _check_axis(self, norm: Operation, target: Operation) -> None:
        kept = self._records[norm.name].axis
        axes = (kept,) if isinstance(kept, int) else kept
        if len(axes) != 1:
            raise No("it keeps several axes")
        (axis,) = axes
        rank = target.settings["rank"] + 2 if "rank" in target.settings else norm.settings.get("input_rank")
        rank = self._ranks.get(norm.name) if rank is None else rank
        own: int = target.settings["channel_axis"]
        if axis == own and rank is None and own == -1:
            return
        if rank is None:
            raise No(f"it normalises axis {axis}, and the number of axes of its input is not known; give --data")
        if axis % rank != own % rank:
            theirs = f"the channels of {target.name} lie on axis {own % rank}"
            raise No(f"it normalises axis {axis % rank} of {rank}, and {theirs}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
