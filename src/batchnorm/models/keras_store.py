"""Variables of Keras 3 weight files: ``<path>/vars/0``, ``1``, ... and the layer's name as an attribute."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from .hdf5 import Dataset, Group
from .modelfile import quoted, unreadable

__all__ = ["Store", "Variables"]

SKIPPED = ("optimizer", "metrics", "_metrics")
NORM_NAME = re.compile(r"batch_?norm|(^|_)bn(\d|_|$)", re.IGNORECASE)
OTHER_NORM = re.compile(r"layer_?norm|group_?norm|instance_?norm|unit_?norm|rms_?norm|dense|conv", re.IGNORECASE)
LISTS = ("layers", "_layer_checkpoint_dependencies")
MOST_GROUPS = 200_000


@dataclass(slots=True)
class Variables:
    """The ``vars`` group of one layer."""

    path: tuple[str, ...]
    names: tuple[str, ...]
    entries: dict[int, Dataset] = field(default_factory=dict[int, Dataset])

    def __len__(self) -> int:
        return len(self.entries)

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes in the order in which the variables were made."""
        return [self.entries[index].shape for index in sorted(self.entries)]

    def read(self, count: int) -> list[NDArray[Any]]:
        """The first ``count`` arrays."""
        return [self.entries[index].read() for index in sorted(self.entries)[:count]]

    def statistics(self, count: int, more: int = 0) -> list[tuple[str, ...]]:
        """Where in the file the moving statistics lie, the last two of the first ``count``, and ``more`` behind."""
        return [self.entries[index].where for index in sorted(self.entries)[count - 2 : count + more]]

    def may_be_norm(self) -> bool:
        """Whether shapes and names are those of a batch normalization: two to four vectors of one length.

        Four equal vectors are enough, as no other layer of Keras has them; fewer need a name to go with it.
        """
        shapes = self.shapes()
        if len(shapes) not in (2, 3, 4, 5, 6, 7) or len(set(shapes)) != 1 or len(shapes[0]) != 1:
            return False
        label = f"{self.path[-1] if self.path else ''} {self.names[-1] if self.names else ''}"
        if NORM_NAME.search(label):
            return True
        return len(shapes) == 4 and not OTHER_NORM.search(label)


class Store:
    """The variables of a model, in one HDF5 file or, sharded, in several.

    Parameters
    ----------
    roots : sequence of Group
        The root of each file.
    path : str
        How messages call the model.
    """

    def __init__(self, roots: Sequence[Group], path: str) -> None:
        self.path = path
        self._roots = tuple(roots)
        # Keras 2.12 wrote this in place of "layers" in every path.
        # Newer files give every layer a name; what has none is a list or dictionary of layers, and no part of the path.
        self._names_all = any(_label(root.group(("vars",))) for root in self._roots)
        self._old = any("_layer_checkpoint_dependencies" in root.names() for root in self._roots)

    def variables(self, path: tuple[str, ...], names: tuple[str, ...] = ()) -> Variables | None:
        """The variables of the layer stored at ``path``; None where there is no such group."""
        if self._old:
            path = tuple("_layer_checkpoint_dependencies" if part == "layers" else part for part in path)
        found: Variables | None = None
        for root in self._roots:
            group = root.group(path)
            held = group.group(("vars",)) if group is not None else None
            if held is None:
                continue
            found = found or Variables(path, names or (_label(held) or (path[-1] if path else ""),))
            self._collect(held, found)
        return found

    def iterations(self) -> tuple[int | None, bool]:
        """The optimizer's count of steps, and whether a loss-scaling optimizer may have skipped some."""
        for path, is_bound in ((("optimizer", "inner_optimizer"), True), (("optimizer",), False)):
            held = self.variables(path)
            if held is not None and 0 in held.entries and held.entries[0].shape == ():
                value = held.entries[0].read()
                if value.dtype.kind in "iu" and int(value) >= 0:
                    return int(value), is_bound
        return None, False

    def discover(self, path: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Iterator[Variables]:
        """Every group below ``path`` that has variables, in the order of the file, with the layer names on its way."""
        seen: set[tuple[int, int]] = set()
        merged: dict[tuple[str, ...], Variables] = {}
        for number, root in enumerate(self._roots):
            start = root.group(path)
            if start is not None:
                self._descend(start, path, names, merged, seen, number)
        yield from merged.values()

    def _descend(
        self,
        group: Group,
        path: tuple[str, ...],
        names: tuple[str, ...],
        merged: dict[tuple[str, ...], Variables],
        seen: set[tuple[int, int]],
        number: int,
    ) -> None:
        if (number, group.address) in seen or len(seen) > MOST_GROUPS:
            return
        seen.add((number, group.address))
        for name in sorted(group.names(), key=_natural):
            if name in SKIPPED or (child := group.get(name)) is None or isinstance(child, Dataset):
                continue
            if name == "vars":
                found = merged.setdefault(path, Variables(path, names))
                self._collect(child, found)
                continue
            inner = (*path, name)
            self._descend(child, inner, (*names, *self._part(inner)), merged, seen, number)

    def _part(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """What a group adds to a layer's name: nothing where it is a list of layers."""
        if path[-1] in LISTS:
            return ()
        # Sharded, a model's name may be in another file than the layers in it.
        held = [found for root in self._roots if (found := root.group((*path, "vars"))) is not None]
        label = next((text for group in held if (text := _label(group))), None)
        if label is not None:
            return (label,)
        return () if self._names_all and not held else (path[-1],)

    def _collect(self, held: Group, into: Variables) -> None:
        for name in held.names():
            entry = held.get(name)
            if not isinstance(entry, Dataset):
                continue
            if not name.isascii() or not name.isdigit() or len(name) > 6:
                raise unreadable(
                    self.path,
                    f"the variables at {quoted('/'.join(into.path))} are not numbered; one is {quoted(name)}",
                    "Keras 3 numbers them: this is no weight file of Keras",
                )
            into.entries[int(name)] = entry


def _label(held: Group | None) -> str | None:
    name = held.attribute("name") if held is not None else None
    return name if isinstance(name, str) else None


def _natural(name: str) -> tuple[str, int]:
    """Sort ``dense_10`` behind ``dense_9``, the order in which they were counted."""
    base, _, number = name.rpartition("_")
    return (base, int(number)) if base and number.isascii() and number.isdigit() and len(number) < 10 else (name, 0)
