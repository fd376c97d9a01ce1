"""Exported programs (``.pt2``) as a bench: the graph is interpreted, its statistics are tensors of ours."""

# PyTorch's own types are partly unknown to a type checker, and it is not imported before it is needed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from batchnorm.core.record import LayerRecord
from batchnorm.errors import BatchnormError, require

from .calls import Visit
from .eager import Eager
from .session import refused
from .torch_bench import Plain, TensorCall
from .torch_program import PURPOSE, WAY_OUT, Program
from .torch_state import array_of, same_random_state, tensor_of

__all__ = ["ProgramBench"]


class ProgramBench(Eager):
    """A program; ``buffers`` gives the names of each layer's moving mean and variance in its state."""

    def __init__(
        self, path: str, program: Program, records: Sequence[LayerRecord], buffers: Mapping[str, tuple[str, str]]
    ) -> None:
        super().__init__(records)
        self._torch: Any = require("torch", "torch", PURPOSE)
        self._path = path
        self._program = program
        self._buffers = dict(buffers)
        self._held: dict[str, Any] = {}
        self._nodes = {node: record for record in self.records for node in program.nodes(record.name)}

    @contextlib.contextmanager
    def session(self) -> Generator[None]:
        """See `Bench`."""
        for record in self.records:
            pair = (record.moving_mean, record.moving_variance)
            for name, values in zip(self._buffers[record.name], pair, strict=True):
                assert values is not None
                self._held[name] = tensor_of(values)
        with same_random_state(), self._torch.no_grad():
            yield

    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """See `Bench`."""
        for name, values in zip(self._buffers[layer], (mean, variance), strict=True):
            self._held[name].copy_(tensor_of(np.array(values, np.float64)).reshape(self._held[name].shape))

    def _run(self, batch: Any, visit: Visit) -> Any:
        def before(node: Any, arguments: dict[str, Any]) -> Any:
            results = len(node.target._schema.returns)
            known = "eps" in arguments and results in (1, 3)
            plain = Plain(arguments["weight"], arguments["bias"], arguments["eps"]) if known else None
            call = TensorCall(self._torch, self._nodes[node], arguments["input"], plain=plain)
            visit(call)
            if call.output is None or results == 1:
                return call.output
            nothing = self._torch.empty(0)  # the batch's statistics, which a graph of inference mode hands out empty
            return call.output, nothing, nothing

        given = self._program.feed(batch)
        try:
            return self._program.interpret(given, self._nodes, before, held=self._held)
        except BatchnormError:
            raise
        except Exception as error:
            raise refused(self._path, "PyTorch", error, WAY_OUT) from error

    def _kept(self, layer: str) -> Any:
        return [self._held[name].clone() for name in self._buffers[layer]]

    def _put_back(self, layer: str, kept: Any) -> None:
        for name, before in zip(self._buffers[layer], kept, strict=True):
            self._held[name].copy_(before)

    def _array(self, output: Any) -> Any:
        return array_of(output)

    def _arrays(self, outputs: Any) -> Any:
        return self._program.outputs(outputs)
