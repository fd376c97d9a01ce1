"""Live NNX modules as a bench: ``__call__`` of their classes is replaced for the time of a run."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Flax' modules are found in the process, never imported here.

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.plan import Plan
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, Refused

from .calls import Call, Visit
from .eager import Eager
from .jax_memory import memory_of_jax
from .session import printable

__all__ = ["NnxBench", "commit", "write"]

MODES = {"deterministic": True, "use_running_average": True}
VARIABLES = ("mean", "var", "remaining", "moving_stddev")


class NnxBench(Eager):
    """A module whose layers are ``modules[name]``; modes and every variable are as before after the session."""

    def __init__(self, model: Any, records: Sequence[LayerRecord], modules: Mapping[str, Any]) -> None:
        super().__init__(records)
        self._model = model
        self._modules = dict(modules)
        self._records = {id(self._modules[record.name]): record for record in self.records}

    @contextlib.contextmanager
    def session(self) -> Generator[None]:
        """See `Bench`."""
        nnx: Any = sys.modules["flax.nnx"]
        own = [node for _, node in nnx.iter_graph(self._model) if isinstance(node, nnx.Variable)]
        kept = [(variable, variable.get_value()) for variable in own]  # arrays of JAX never change
        modes = [
            (module, name, vars(module)[name])
            for _, module in nnx.iter_modules(self._model)
            for name in MODES
            if name in vars(module)
        ]
        try:
            for module, name, _ in modes:
                setattr(module, name, MODES[name])
            yield
        finally:
            for module, name, before in modes:
                setattr(module, name, before)
            for variable, before in kept:
                variable.set_value(before)

    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """See `Bench`."""
        write(self._modules[layer], mean, variance)

    def _run(self, batch: Any, visit: Visit) -> Any:
        jnp: Any = sys.modules["jax"].numpy
        with contextlib.ExitStack() as stack:
            for kind in {type(module) for module in self._modules.values()}:
                stack.enter_context(self._seen(kind, visit))
            if isinstance(batch, dict):
                return self._called({key: jnp.asarray(value) for key, value in batch.items()})
            several = batch if isinstance(batch, list) else [batch]
            return self._called(*[jnp.asarray(value) for value in several])

    def _called(self, *given: Any) -> Any:
        try:
            if given and isinstance(given[0], dict):
                return self._model(**given[0])
            return self._model(*given)
        except Refused:
            raise
        except (TypeError, ValueError, IndexError) as error:
            shapes = ", ".join(str(getattr(each, "shape", type(each).__name__)) for each in given)
            raise ArgumentError(
                f"{type(self._model).__name__} refuses an input of shape {shapes} ({type(error).__name__}: "
                f"{printable(error)})"
            ) from error

    @contextlib.contextmanager
    def _seen(self, kind: type, visit: Visit) -> Generator[None]:
        own: Callable[..., Any] | None = vars(kind).get("__call__")
        original: Callable[..., Any] = kind.__call__
        records = self._records

        def call(module: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            record = records.get(id(module))
            if record is None:
                return original(module, x, *args, **kwargs)
            visit(ArrayCall(record, x, kwargs.get("mask")))
            kwargs.pop("use_running_average", None)
            return original(module, x, use_running_average=True, **kwargs)

        kind.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            if own is None:
                del kind.__call__
            else:
                kind.__call__ = own  # type: ignore[method-assign]

    def _kept(self, layer: str) -> Any:
        return [(held, held.get_value()) for held in _held(self._modules[layer])]

    def _put_back(self, layer: str, kept: Any) -> None:
        for held, before in kept:
            held.set_value(before)

    def _array(self, output: Any) -> Any:
        return np.asarray(output)


class ArrayCall(Call):
    """A call of a layer on an array of JAX."""

    def __init__(self, record: LayerRecord, x: Any, mask: Any) -> None:
        jax: Any = sys.modules["jax"]
        if isinstance(x, jax.core.Tracer):
            raise Refused(
                f"recalibrate: {record.name} is called inside jax.jit or another transformation, where its input has "
                "no values to measure. Call the module without it."
            )
        super().__init__(record, jax.numpy.asarray(x), mask)
        self._jnp: Any = jax.numpy

    def _namespace(self) -> Any:
        return self._jnp

    def _widened(self) -> Any:
        return self.x if self.x.dtype == self._jnp.float64 else self.x.astype(self._jnp.float32)

    def _tensor(self, array: NDArray[Any]) -> Any:
        return self._jnp.asarray(array)

    def _array(self, tensor: Any) -> NDArray[Any]:
        return np.asarray(tensor)

    def _memory(self) -> NDArray[Any] | None:
        return memory_of_jax(self.x)

    def _counted(self, how: Plan, who: str) -> NDArray[Any] | None:
        try:
            return super()._counted(how, who)
        except ArgumentError:  # Flax' own masks broadcast to the input, channel by channel
            return np.broadcast_to(np.asarray(self.mask, bool), tuple(self.x.shape))


def write(module: Any, mean: Any, variance: Any) -> None:
    """Give a layer statistics; those of this package's debiased layers then hold nothing of the initial value."""
    jnp: Any = sys.modules["jax"].numpy
    for held, values in ((module.mean, mean), (module.var, variance)):
        old = held[...]
        held[...] = jnp.asarray(np.asarray(values, np.float64).reshape(old.shape), old.dtype)
    remaining = getattr(module, "remaining", None)
    if remaining is not None:
        remaining[...] = jnp.zeros_like(remaining[...])


def commit(modules: Mapping[str, Any], statistics: Mapping[str, tuple[Any, Any]]) -> None:
    """Write new statistics into live modules; where that fails half-way, the old ones come back."""
    kept = [(held, held.get_value()) for name in statistics for held in _held(modules[name])]
    try:
        for name, pair in statistics.items():
            write(modules[name], *pair)
    except BaseException:
        for held, before in kept:
            held.set_value(before)
        raise


def _held(module: Any) -> list[Any]:
    return [held for name in VARIABLES if (held := getattr(module, name, None)) is not None]
