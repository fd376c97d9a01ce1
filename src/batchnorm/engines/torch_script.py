"""PyTorch as an engine for TorchScript: its compiled graph, and what goes in and out of its batch normalizations."""

# PyTorch's own types are partly unknown to a type checker, and it is not imported before it is needed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.protocols import Capture
from batchnorm.errors import require

from .session import Input, Session, feed, refused, require_layers, require_visible
from .torch_state import array_of, same_numbers, same_random_state, tensor_of

__all__ = ["open_script"]

PURPOSE = "Running TorchScript"
WAY_OUT = "Run it in the program that wrote it"
WHY = "it is inside a branch or a loop of the graph"
OPERATOR, ATTRIBUTE, TUPLE = "aten::batch_norm", "prim::GetAttr", "prim::TupleConstruct"
MEAN = 3  # position among the operator's inputs


def open_script(module: Any, path: str, names: Sequence[str]) -> Session:
    """Run a loaded TorchScript module in evaluation mode.

    Parameters
    ----------
    module : torch.jit.ScriptModule
        Loaded from ``path`` for this purpose alone: it is put in evaluation mode.
    path : str
        How messages call it.
    names : sequence of str
        Every record of it.

    Raises
    ------
    MissingExtra
        PyTorch is not installed.
    """
    return _Script(require("torch", "torch", PURPOSE), module.eval(), path, list(names))


class _Script:
    """The module for its outputs; a copy of its graph that hands out more values for what lies inside."""

    def __init__(self, torch: Any, module: Any, path: str, names: list[str]) -> None:
        self._torch, self._module, self._path, self._names = torch, module, path, names
        graph = module.inlined_graph
        self._inputs = [Input(value.debugName().partition(".")[0], None, None) for value in list(graph.inputs())[1:]]
        self._visible = [name for name in map(_layer, _norms(graph)) if name in names]

    def __call__(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """See `Session`."""
        require_layers(capture, self._names, "PyTorch")
        require_visible(capture, self._visible, self._path, WHY)
        given = [self._tensor(value) for value in feed(x, self._inputs).values()]
        module = self._module
        with same_random_state(), same_numbers([*module.parameters(), *module.buffers()]), self._torch.no_grad():
            try:
                if not capture:
                    return _plain(module(*given)), {}
                function, watched = self._watching(capture)
                outputs, *values = function(module._c, *given)
            except Exception as error:
                raise refused(self._path, "PyTorch", error, WAY_OUT) from error
        captured: Capture = {name: [] for name in capture}
        for place, name in enumerate(watched):
            captured[name].append((array_of(values[2 * place]), array_of(values[2 * place + 1])))
        return _plain(outputs), captured

    def _tensor(self, value: NDArray[Any]) -> Any:
        """As the module's own numbers are: TorchScript holds no types of its inputs."""
        tensor = tensor_of(value)
        types = [each.dtype for each in self._module.parameters() if each.is_floating_point()]
        return tensor.to(types[0]) if types and tensor.is_floating_point() else tensor

    def _watching(self, capture: Sequence[str]) -> tuple[Any, list[str]]:
        graph = self._module.inlined_graph.copy()
        nodes = [node for node in _norms(graph) if _layer(node) in capture]
        values: list[Any] = list(graph.outputs())
        for node in nodes:
            values += [node.inputsAt(0), node.output()]
        together = graph.create(TUPLE, values)
        graph.appendNode(together)
        for _ in list(graph.outputs()):
            graph.eraseOutput(0)
        together.output().setType(self._torch._C.TupleType([value.type() for value in values]))
        graph.registerOutput(together.output())
        return self._torch._C._create_function_from_graph("watching", graph), [_layer(node) for node in nodes]


def _norms(graph: Any) -> list[Any]:
    """The calls that are in no branch or loop, in their order."""
    return [node for node in graph.nodes() if node.kind() == OPERATOR]


def _layer(node: Any) -> str:
    """The submodule whose running mean a call is given."""
    parts: list[str] = []
    at = node.inputsAt(MEAN).node()
    while at.kind() == ATTRIBUTE:
        parts.append(at.s("name"))
        at = at.inputsAt(0).node()
    return ".".join(parts[:0:-1])


def _plain(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {str(key): _plain(value) for key, value in outputs.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(outputs, (list, tuple)):
        return [_plain(value) for value in outputs]  # pyright: ignore[reportUnknownVariableType]
    return array_of(outputs) if hasattr(outputs, "detach") else np.asarray(outputs)
