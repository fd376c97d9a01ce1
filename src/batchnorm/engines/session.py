"""What every engine has in common: a loaded model that runs again and again, its inputs checked before it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.protocols import Capture
from batchnorm.errors import ArgumentError, ModelFileError, Refused, UnknownLayer

__all__ = [
    "Input",
    "Lazy",
    "Places",
    "Session",
    "feed",
    "inputs_of",
    "printable",
    "refused",
    "require_layers",
    "require_visible",
    "structured",
]

Places = dict[str, list[tuple[str, int, str]]]
"""Layer name -> its uses in a graph: the operator and which of its inputs goes in, and the operator whose output comes
out."""

SHOWN = 10
LONGEST = 300


class Session(Protocol):
    """A model that an engine has loaded."""

    def __call__(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """Outputs in inference mode, and what went in and out of the named layers."""
        ...


class Lazy:
    """A session that is opened when it first runs, and kept: a model that runs on many batches is loaded once."""

    def __init__(self, load: Callable[[], Session]) -> None:
        self._load = load
        self._session: Session | None = None

    def __call__(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """See `Session`."""
        return self._opened()(x, capture)

    @property
    def inputs(self) -> list[Input] | None:
        """What the model takes, where its engine tells; loads it."""
        return getattr(self._opened(), "inputs", None)

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._load()
        return self._session


def inputs_of(model: Any) -> list[Input] | None:
    """What a model takes, where it runs on an engine that tells; loads it."""
    runner = getattr(model, "runner", None)
    return runner.inputs if isinstance(runner, Lazy) else None


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a model; lengths that may be any are None, and so is a shape of unknown rank."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: np.dtype[Any] | None

    def __str__(self) -> str:
        shape = "any shape" if self.shape is None else f"shape ({self._lengths(self.shape)})"
        return f"{self.name!r} of {shape}" + ("" if self.dtype is None else f" and dtype {self.dtype.name}")

    @staticmethod
    def _lengths(shape: tuple[int | None, ...]) -> str:
        shown = ", ".join("any" if length is None else str(length) for length in shape)
        return f"{shown}," if len(shape) == 1 else shown

    def array(self, value: Any) -> NDArray[Any]:
        """The value as this input wants it.

        Numbers become the wanted type where nothing but precision is lost; everything else is refused.

        Raises
        ------
        ArgumentError
            Another shape, or values the type cannot hold.
        """
        given = np.asarray(value)
        if self.shape is not None and not _fits(given.shape, self.shape):
            raise ArgumentError(
                f"the model wants {self}, batch first; got shape {given.shape}{self._fixed(given.shape)}"
            )
        if self.dtype is None or given.dtype == self.dtype:
            return np.ascontiguousarray(given)
        if given.dtype.kind not in "fiub" and given.dtype.name != "bfloat16":
            raise ArgumentError(f"the model wants {self}; got dtype {given.dtype}")
        with np.errstate(all="ignore"):
            cast_to = given.astype(self.dtype)
            loses = self.dtype.kind in "iub" and not np.array_equal(cast_to, given)
        if loses:
            raise ArgumentError(f"the model wants {self}; the {given.dtype} given hold values that it cannot")
        return cast_to

    def _fixed(self, shape: tuple[int, ...]) -> str:
        """What to do where the number of samples alone does not fit."""
        wanted = self.shape or ()
        if not wanted or not shape or wanted[0] is None or not _fits(shape[1:], wanted[1:]):
            return ""
        return (
            f". It was exported for {wanted[0]} at a time: give whole batches of {wanted[0]} (batch size {wanted[0]}), "
            "or export it with a free batch axis"
        )


def feed(x: Any, wanted: Sequence[Input]) -> dict[str, NDArray[Any]]:
    """The arrays of each input by name.

    Parameters
    ----------
    x : array, or list or dict of arrays
        One array for a model with one input, a list in the order of the inputs, or a dict by their names.
    wanted : sequence of Input
        What the model takes.

    Raises
    ------
    ArgumentError
        Another name, number, shape or type; the message says what is wanted.
    """
    if isinstance(x, dict):
        named = {str(key): value for key, value in cast("dict[Any, Any]", x).items()}
    elif len(wanted) == 1:
        named = {wanted[0].name: x}
    elif isinstance(x, (list, tuple)) and len(cast("Sequence[Any]", x)) == len(wanted):
        named = {known.name: value for known, value in zip(wanted, cast("Sequence[Any]", x), strict=True)}
    else:
        raise ArgumentError(f"the model wants {len(wanted)} inputs: {_listed(wanted)}; give a list or named arrays")
    if set(named) != {known.name for known in wanted}:
        raise ArgumentError(f"the model's inputs are {_listed(wanted)}; got {', '.join(map(repr, named)) or 'none'}")
    return {known.name: known.array(named[known.name]) for known in wanted}


def require_layers(capture: Sequence[str], known: Sequence[str], where: str) -> None:
    """Every name to capture must be one the engine can find.

    Raises
    ------
    UnknownLayer
        It cannot; the message lists those it can.
    """
    unknown = [name for name in capture if name not in known]
    if unknown:
        some = ", ".join(map(repr, known[:SHOWN])) + (", ..." if len(known) > SHOWN else "")
        raise UnknownLayer(f"the model in {where} has no batch normalization {unknown[0]!r}; it has {some or 'none'}")


def require_visible(capture: Sequence[str], places: Container[str], path: str, why: str) -> None:
    """At least one of the layers must show; those that do not are captured with no calls.

    Raises
    ------
    Refused
        None of them does.
    """
    if capture and not any(name in places for name in capture):
        raise Refused(f"{path}: what goes in and out of {capture[0]!r} cannot be shown: {why}.")


def printable(error: object) -> str:
    """The message of an engine in one line, without what a terminal would take for a command, cut to fit."""
    text = " ".join(str(error).split())
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def refused(path: str, engine: str, error: Exception, way_out: str) -> ModelFileError:
    """The error of a model that an engine cannot load or run, with the engine's own words."""
    return ModelFileError(f"{path}: {engine} refuses it ({type(error).__name__}: {printable(error)}). {way_out}.")


def structured(outputs: Any, convert: Callable[[Any], Any]) -> Any:
    """Outputs in their structure of dictionaries and lists, each tensor converted; a dataclass is a dictionary."""
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {each.name: structured(getattr(outputs, each.name), convert) for each in dataclasses.fields(outputs)}
    if isinstance(outputs, dict):
        return {key: structured(value, convert) for key, value in cast("dict[Any, Any]", outputs).items()}
    if isinstance(outputs, (list, tuple)):
        return [structured(value, convert) for value in cast("Sequence[Any]", outputs)]
    return convert(outputs)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        length is None or length == got for length, got in zip(wanted, shape, strict=True)
    )


def _listed(wanted: Sequence[Input]) -> str:
    return "; ".join(map(str, wanted)) or "none"
