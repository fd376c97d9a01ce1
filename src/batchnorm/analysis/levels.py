"""In which order layers can be measured: those that do not feed each other together, those that feed first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Level", "levels_of"]


@dataclass(frozen=True, slots=True)
class Level:
    """Layers that share a pass; ``cyclic`` are those of them that are fed, by some way, by their own output."""

    layers: tuple[str, ...]
    cyclic: tuple[str, ...] = ()


def levels_of(order: Sequence[str], feeds: Mapping[str, Collection[str]], wanted: Collection[str]) -> list[Level]:
    """The passes of a sequential recalibration.

    Parameters
    ----------
    order : sequence of str
        Layers in the order of their first calls.
    feeds : mapping
        Layer -> every layer whose input depends on its output, by whatever way.
    wanted : collection of str
        The layers to be measured; the others keep their statistics and only pass on.

    Returns
    -------
    list of Level
        A layer comes after all that feed it. Layers that feed each other, or themselves, are in one level and cyclic.
    """
    names = [name for name in order if name in wanted]
    depth: dict[str, int] = {}
    for name in names:
        _place(name, names, feeds, depth, set())
    found: list[Level] = []
    for number in sorted(set(depth.values())):
        layers = tuple(name for name in names if depth[name] == number)
        found.append(Level(layers, tuple(name for name in layers if name in feeds.get(name, ()))))
    return found


def _place(
    name: str, names: Sequence[str], feeds: Mapping[str, Collection[str]], depth: dict[str, int], waiting: set[str]
) -> int:
    """The level of a layer: one more than the deepest that feeds it, less those that it feeds itself."""
    if name in depth:
        return depth[name]
    waiting.add(name)
    mine = feeds.get(name, ())
    ring = [name, *(other for other in names if other != name and name in feeds.get(other, ()) and other in mine)]
    before = [other for other in names if other not in ring and any(each in feeds.get(other, ()) for each in ring)]
    found = 1 + max(
        (_place(other, names, feeds, depth, waiting) for other in before if other not in waiting), default=-1
    )
    for each in ring:
        depth[each] = found
    return found
