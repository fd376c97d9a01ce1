"""PyTorch as an engine for exported programs (``.pt2``): the graph is interpreted node by node."""

# PyTorch's own types are partly unknown to a type checker, and it is not imported before it is needed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import os
import warnings
import zipfile
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from batchnorm.core.protocols import Capture
from batchnorm.errors import BatchnormError, ModelFileError, require

from .session import Input, feed, refused, require_layers, require_visible
from .torch_state import array_of, same_random_state, tensor_of

__all__ = ["Program", "open_program"]

PURPOSE = "Running .pt2 files"
WAY_OUT = "Run it in the program that wrote it"
WHY = "it is inside a branch or a loop of the graph"
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
CODE = ("custom_obj_", "opaque_obj_")


def open_program(
    path: str, names: Sequence[str], places: dict[str, tuple[int, ...]], operators: Container[str]
) -> Program:
    """Load an exported program in PyTorch, without the pickled objects that such a file may bring along.

    Parameters
    ----------
    path : str
        A file of ``torch.export.save``.
    names : sequence of str
        Every record of it.
    places : dict
        Layer name -> which calls of a batch normalization in the graph, counted from 0, are its own.
    operators : container of str
        The names in ``aten`` that count as such calls.

    Raises
    ------
    ModelFileError
        It needs code to be loaded, or PyTorch refuses it.
    MissingExtra
        PyTorch is not installed.
    """
    torch: Any = require("torch", "torch", PURPOSE)
    _refuse_code(path)
    try:
        with _weights_only(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = require("torch.export", "torch", PURPOSE).load(path)
    except BatchnormError:
        raise
    except Exception as error:
        raise refused(path, "PyTorch", error, WAY_OUT) from error
    calls = [node for node in program.graph.nodes if _operator(node) in operators]
    return Program(torch, path, (program, calls), list(names), places)


def _refuse_code(path: str) -> None:
    """Constants that are objects of classes are pickles, which PyTorch loads without asking."""
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.rpartition("/")[2].startswith(CODE)]
    if found:
        raise ModelFileError(f"{path}: {found[0]!r} is a pickled object, whose loading runs code. {WAY_OUT}.")


@contextlib.contextmanager
def _weights_only() -> Generator[None]:
    """PyTorch's own switch: where a pickle of the file holds more than numbers, loading fails instead of running it."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before


class Program:
    """A loaded program; each run gets copies of its buffers, so that a graph of training mode changes nothing."""

    def __init__(
        self, torch: Any, path: str, loaded: tuple[Any, list[Any]], names: list[str], places: dict[str, tuple[int, ...]]
    ) -> None:
        program, self._calls = loaded
        self._torch = torch
        self._path = path
        self._program = program
        self._names = names
        self._places = places
        held = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        self.inputs = [_input(name, held[name]) for name in program.graph_signature.user_inputs if name in held]

    def __call__(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """See `Session`."""
        require_layers(capture, self._names, "PyTorch")
        require_visible(capture, self._places, self._path, WHY)
        given = feed(x, self.inputs)
        watched = {
            self._calls[place]: name
            for name in capture
            for place in self._places.get(name, ())
            if place < len(self._calls)
        }
        captured: Capture = {name: [] for name in capture}
        with same_random_state(), self._torch.no_grad():
            try:
                found = self._run(given, watched, captured)
            except Exception as error:
                raise refused(self._path, "PyTorch", error, WAY_OUT) from error
        return self.outputs(found), captured

    def _run(self, given: dict[str, NDArray[Any]], watched: dict[Any, str], captured: Capture) -> Sequence[Any]:
        single = self._torch.Tensor
        entries: dict[Any, NDArray[Any]] = {}

        def before(node: Any, given: dict[str, Any]) -> None:
            entries[node] = array_of(given["input"])

        def after(node: Any, value: Any) -> None:
            leave = array_of(value if isinstance(value, single) else value[0])
            captured[watched[node]].append((entries.pop(node), leave))

        return self.interpret(given, watched, before, after)

    def feed(self, x: Any) -> dict[str, NDArray[Any]]:
        """The arrays of each input by name."""
        return feed(x, self.inputs)

    def nodes(self, layer: str) -> list[Any]:
        """The calls of a layer in the graph."""
        return [self._calls[place] for place in self._places.get(layer, ()) if place < len(self._calls)]

    def interpret(
        self,
        given: dict[str, NDArray[Any]],
        watched: Container[Any],
        before: Callable[[Any, dict[str, Any]], Any],
        after: Callable[[Any, Any], None] | None = None,
        held: Mapping[str, Any] | None = None,
    ) -> Sequence[Any]:
        """Run the graph; ``before`` sees the arguments of each watched node by name, ``after`` what it gives.

        What ``before`` returns, if not None, stands for what the node would give, and the node is not run.
        ``held`` are other tensors for buffers and constants, by their names in the program's state.
        """
        fx: Any = require("torch.fx", "torch", PURPOSE)

        class Watching(fx.Interpreter):
            def run_node(self, n: Any) -> Any:
                if n not in watched:
                    return super().run_node(n)  # pyright: ignore[reportUnknownVariableType]
                arguments = self.fetch_args_kwargs_from_env(n)
                names = (argument.name for argument in n.target._schema.arguments)
                value: Any = before(n, dict(zip(names, arguments[0], strict=False)) | arguments[1])
                if value is None:
                    value = super().run_node(n)  # pyright: ignore[reportUnknownVariableType]
                if after is not None:
                    after(n, value)
                return value  # pyright: ignore[reportUnknownVariableType]

        other = held or {}
        names = [node.name for node in self._program.graph.nodes if node.op == "placeholder"]
        values = [self._value(name, given, other) for name in names]
        return Watching(self._program.graph_module).run(*values, enable_io_processing=False)

    def _value(self, name: str, given: dict[str, NDArray[Any]], other: Mapping[str, Any]) -> Any:
        """What stands for an input of the graph: the user's, a parameter, or a copy of a buffer or constant."""
        if name in given:
            return tensor_of(given[name])
        signature, program = self._program.graph_signature, self._program
        if name in signature.inputs_to_parameters:
            return program.state_dict[signature.inputs_to_parameters[name]]
        if name in signature.inputs_to_buffers:
            buffer = signature.inputs_to_buffers[name]
            if buffer in other:
                return other[buffer]  # itself: it may be written to before the layer runs
            held = program.state_dict if buffer in program.state_dict else program.constants
            return held[buffer].clone()
        return program.constants[signature.inputs_to_lifted_tensor_constants[name]].clone()

    def outputs(self, found: Sequence[Any]) -> Any:
        """The user's outputs, less what the graph hands back to update its buffers."""
        specs = self._program.graph_signature.output_specs
        arrays = [
            array_of(value)
            for value, spec in zip(found, specs, strict=True)
            if spec.kind.name == "USER_OUTPUT" and isinstance(value, self._torch.Tensor)
        ]
        return arrays[0] if len(arrays) == 1 else arrays


def _operator(node: Any) -> str:
    """The name of the operator of ``aten`` that a node calls; empty for other nodes."""
    namespace, _, name = str(getattr(node.target, "overloadpacket", "")).rpartition(".")
    return name if node.op == "call_function" and namespace == "aten" else ""


def _input(name: str, fake: Any) -> Input:
    if not hasattr(fake, "shape"):
        return Input(name, None, None)
    shape = tuple(length if isinstance(length, int) else None for length in fake.shape)
    dtype = str(fake.dtype).removeprefix("torch.")
    return Input(name, shape, np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype))
