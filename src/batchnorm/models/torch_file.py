"""``.pt``, ``.pth``, ``.ckpt``, ``.bin``: checkpoints of PyTorch, whatever they wrap their state dicts in."""

from __future__ import annotations

import argparse
import bisect
import pathlib
import types
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord
from batchnorm.engines.session import Lazy
from batchnorm.engines.torch_files import (
    dtype_of,
    fill,
    is_plain,
    is_spread,
    load_places,
    load_script,
    load_weights_only,
    place_of,
    save_older,
)
from batchnorm.engines.torch_script import open_script
from batchnorm.engines.torch_state import array_of

from .archive import Archive
from .keras_records import numbered
from .marker import KEY, marked
from .modelfile import ModelFile, Pairs, quoted, rounded, unreadable
from .patching import Patch, data_start, patched_zip, with_member
from .state_dict import Found, Tensor, norms_among, statistics_names
from .torch_script import settings_of

__all__ = ["arrays_of_pickle", "arrays_of_zip", "mark", "read_pickle", "read_script", "read_zip", "state_dicts"]

MOST_DEPTH = 8
MOST_CONTAINERS = 20_000
NAMESPACES = (argparse.Namespace, types.SimpleNamespace)
# Where a file holds several copies of one network, the first of these is read.
PREFERRED = ("state_dict", "model_state_dict", "model", "module", "net", "network")
COPIES_NOTE = "The file holds the same layers in {}; those of {} are read"
SCRIPT_NOTE = "Settings are those of the TorchScript graph"
Path = tuple[str, ...]
Place = tuple[Path, str]
"""The keys on the way to a state dict, and a layer's name in it."""


def read_zip(path: str) -> ModelFile:
    """The batch normalizations of a checkpoint; only their arrays are read."""
    return _checkpoint(path, _mapped(path))


def read_pickle(path: str) -> ModelFile:
    """The same of the older form, which is read as a whole."""
    return _checkpoint(path, load_weights_only(path, is_zip=False))


def arrays_of_zip(path: str) -> list[dict[str, Tensor]]:
    """Every state dict of a checkpoint."""
    return [tensors for _, tensors in state_dicts(_mapped(path))]


def arrays_of_pickle(path: str) -> list[dict[str, Tensor]]:
    """The same of the older form."""
    return [tensors for _, tensors in state_dicts(load_weights_only(path, is_zip=False))]


def read_script(path: str, *, trust: bool) -> ModelFile:
    """Those of a TorchScript archive.

    Raises
    ------
    ModelFileError
        Without ``trust``: PyTorch's loader runs code of the file.
    """
    if not trust:
        raise unreadable(
            path,
            "a TorchScript archive, whose loader runs code of the file",
            "Pass --trust if you trust who made it, or save model.state_dict() or torch.export.save",
        )
    module = load_script(path)
    found = norms_among(_tensors(cast("dict[str, Any]", module.state_dict())))
    settings = settings_of(module)
    records = tuple(settings[each.name].applied(each) if each.name in settings else each for each in found.layers)
    is_known = all(record.epsilon is not None for record in records)
    notes = (SCRIPT_NOTE,) if is_known and records else found.notes
    names = tuple(record.name for record in records)
    return ModelFile(
        path=path,
        format="torchscript",
        layers=records,
        other_layers=found.other_layers,
        notes=notes,
        runner=Lazy(partial(open_script, module, path, names)),
    )


def state_dicts(value: Any) -> list[tuple[Path, dict[str, Tensor]]]:
    """Every dictionary of tensors inside a checkpoint, with the keys on the way to it."""
    found: list[tuple[Path, dict[str, Tensor]]] = []
    seen: set[int] = set()
    for place, container in _containers(value, (), seen):
        tensors = _tensors(container)
        if tensors:
            found.append((place, tensors))
    return found


def _mapped(path: str) -> Any:
    with open(path, "rb") as stream:
        packed = Archive(stream, path).compressed()
    if packed is not None:  # PyTorch would map the compressed bytes and take them for numbers
        raise unreadable(
            path,
            f"{packed} in it is compressed, which PyTorch's own files are not",
            "Load it with torch.load and save it again",
        )
    return load_weights_only(path, is_zip=True)


def _checkpoint(path: str, value: Any) -> ModelFile:
    found = [(place, norms_among(tensors)) for place, tensors in state_dicts(value)]
    holding = [(place, each) for place, each in found if each.layers or each.notes]
    networks, notes = _networks(holding)
    several = len(networks) > 1
    records = [_placed(record, place if several else ()) for place, each in networks for record in each.layers]
    notes += [note for _, each in networks for note in each.notes]
    others = tuple(name for _, each in (networks or found) for name in each.other_layers)
    named = marked(numbered(records), _mark_of(path))
    places = [(place, each.name) for place, found in networks for each in found.layers]
    return ModelFile(
        path=path,
        format="torch",
        layers=named,
        other_layers=others,
        notes=tuple(dict.fromkeys(notes)),
        writer=partial(_write, path, named, places),
        marker=mark if zipfile.is_zipfile(path) else None,
    )


def mark(place: pathlib.Path, text: str) -> None:
    """Put a mark into the archive as one more record, which PyTorch does not ask for."""
    with zipfile.ZipFile(place) as archive:
        root = archive.namelist()[0].partition("/")[0]
    with_member(place, f"{root}/{KEY}", text.encode())


def _mark_of(path: str) -> bytes | None:
    if not zipfile.is_zipfile(path):
        return None
    with open(path, "rb") as stream:
        archive = Archive(stream, path)
        name = next((name for name in archive.names() if name.count("/") == 1 and name.endswith(f"/{KEY}")), None)
        return None if name is None else archive.text(name)


def _write(path: str, records: Sequence[LayerRecord], places: list[Place], target: pathlib.Path, new: Pairs) -> None:
    """A copy of a checkpoint with new statistics; see `ModelFile.writer`."""
    if not zipfile.is_zipfile(path):
        value = load_weights_only(path, is_zip=False)
        for tensor, data in _targets(value, records, places, new):
            fill(tensor, data)
        save_older(value, target)
        return
    members: dict[str, list[Patch]] = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as stream:
        starts = sorted((data_start(stream, info), info.filename) for info in archive.infolist())
    for tensor, data in _targets(load_places(path), records, places, new):
        at = place_of(tensor)
        start, member = starts[bisect.bisect(starts, (at, chr(0x10FFFF))) - 1]
        members.setdefault(member, []).append((at - start, data.tobytes()))
    patched_zip(path, target, members)


def _targets(
    value: Any, records: Sequence[LayerRecord], places: list[Place], new: Pairs
) -> Iterator[tuple[Any, NDArray[Any]]]:
    """The tensors that get new numbers, with the numbers."""
    containers = dict(_containers(value, (), set()))
    for record, (place, prefix) in zip(records, places, strict=True):
        if record.name in new:
            container = containers[place]
            names = statistics_names(name for name in container if isinstance(name, str))[prefix]
            for name, values in zip(names, new[record.name], strict=True):
                yield container[name], rounded(record, values)


def _containers(value: Any, place: Path, seen: set[int]) -> Iterator[tuple[Path, Mapping[Any, Any]]]:
    """Dictionaries, also inside of lists and of the name spaces that scripts keep their arguments in."""
    held = vars(value) if isinstance(value, NAMESPACES) else cast("object", value)
    if not isinstance(held, (Mapping, list, tuple)) or id(cast("object", held)) in seen or len(place) > MOST_DEPTH:
        return
    seen.add(id(cast("object", held)))
    if len(seen) > MOST_CONTAINERS:
        return
    if isinstance(held, Mapping):
        yield place, cast("Mapping[Any, Any]", held)
        parts = list(cast("Mapping[Any, Any]", held).items())
    else:
        parts = list(enumerate(cast("Sequence[Any]", held)))
    for key, inner in parts:
        yield from _containers(inner, (*place, str(key)), seen)


def _tensors(container: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        key: Tensor(tuple(value.shape), dtype_of(value), partial(array_of, value))
        for key, value in container.items()
        if isinstance(key, str) and is_plain(value) and not is_spread(value)
    }


def _networks(holding: list[tuple[Path, Found]]) -> tuple[list[tuple[Path, Found]], list[str]]:
    """One of several copies of each network, and what was left out."""
    copies: dict[tuple[str, ...], list[tuple[Path, Found]]] = {}
    for place, found in holding:
        copies.setdefault(tuple(record.name for record in found.layers), []).append((place, found))
    chosen: list[tuple[Path, Found]] = []
    notes: list[str] = []
    for names, same in copies.items():
        if not names:
            chosen.extend(same)
            continue
        best = min(same, key=lambda each: _rank(each[0]))
        chosen.append(best)
        if len(same) > 1:
            places = " and ".join(quoted("/".join(place) or ".") for place, _ in same)
            notes.append(COPIES_NOTE.format(places, quoted("/".join(best[0]) or ".")))
    return chosen, notes


def _rank(place: Path) -> int:
    return next((PREFERRED.index(key) for key in place if key in PREFERRED), len(PREFERRED))


def _placed(record: LayerRecord, place: Path) -> LayerRecord:
    return replace(record, name="/".join(part for part in (*place, record.name) if part)) if place else record
