"""PyTorch as an engine for live modules: hooks see what goes in and out, and everything is put back afterwards."""

# PyTorch's own types are partly unknown to a type checker, and it is not imported before it is needed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from batchnorm.core.protocols import Capture, Masked
from batchnorm.errors import ArgumentError, BatchnormError, require

from .session import printable, require_layers, structured
from .torch_state import array_of, same_numbers, same_random_state, tensor_of

__all__ = ["PURPOSE", "arguments", "arrays", "called", "is_live", "run_module", "unchanged"]

PURPOSE = "Running a PyTorch model"


def is_live(value: Any) -> bool:
    """Whether an object is a module, found without importing PyTorch."""
    module: Any = getattr(getattr(sys.modules.get("torch"), "nn", None), "Module", None)
    return module is not None and isinstance(value, module)


def run_module(
    model: Any, x: Any, capture: Sequence[str] = (), *, layers: Mapping[str, Any] | None = None
) -> tuple[Any, Capture]:
    """Run a live module in inference mode, without gradients.

    Parameters
    ----------
    model : torch.nn.Module
        Its training flags, hooks, buffers and the random state are as before when this returns, or raises.
    x : array, or list or dict of arrays
        The arguments of ``forward``: one, several by position, or by name. Floating-point arrays take the type of the
        module's parameters.
    capture : sequence of str
        Names of layers.
    layers : mapping, optional
        Name -> module; the names of ``model.named_modules()`` where absent.

    Returns
    -------
    outputs, captured
        Arrays in the structure of the outputs; name -> (input, output) of each call. Of a layer with an activation of
        its own, the output is what its normalization hands to it.

    Raises
    ------
    UnknownLayer
        No such module.
    ArgumentError
        ``forward`` refuses the input; its own words are in the message.
    """
    torch: Any = require("torch", "torch", PURPOSE)
    known = dict(model.named_modules()) if layers is None else dict(layers)
    require_layers(capture, list(known), "PyTorch")
    positional, named = arguments(torch, model, x)
    captured = Masked(capture)
    with unchanged(model), torch.no_grad(), contextlib.ExitStack() as stack:
        for module in model.modules():
            module.training = False  # not eval(), which a class may have made its own
        for name in captured:
            stack.enter_context(_recorded(name, known[name], captured))
        outputs = called(model, positional, named)
    return arrays(torch, outputs), captured


@contextlib.contextmanager
def unchanged(model: Any) -> Generator[None]:
    """Training flags, parameters' bits where they are buffers, and the random state are as before, also after an error.

    Parameters are left alone: without gradients and an optimizer nothing writes to them.

    Raises
    ------
    ArgumentError
        A parameter gets its values by the first call, which would change the module.
    """
    lazy: Any = require("torch.nn.parameter", "torch", PURPOSE).UninitializedParameter
    unmade = next((name for name, held in model.named_parameters() if isinstance(held, lazy)), None)
    if unmade is not None:
        raise ArgumentError(
            f"{type(model).__name__}: parameter {unmade!r} has no values yet. Call the module once on data, or load "
            "its weights"
        )
    flags = [(module, module.training) for module in model.modules()]
    with same_random_state(), same_numbers(model.buffers()):
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training


def called(model: Any, positional: list[Any], named: dict[str, Any]) -> Any:
    """The module's outputs.

    Raises
    ------
    ArgumentError
        ``forward`` refuses the input; its own words are in the message.
    """
    try:
        return model(*positional, **named)
    except BatchnormError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        given = [tuple(tensor.shape) for tensor in (*positional, *named.values())]
        shapes = ", ".join(map(str, given))
        raise ArgumentError(
            f"{type(model).__name__}.forward{_signature(model)} refuses an input of shape {shapes} "
            f"({type(error).__name__}: {printable(error)})"
        ) from error


def _signature(model: Any) -> str:
    try:
        return str(inspect.signature(model.forward))
    except (TypeError, ValueError):
        return ""


def arguments(torch: Any, model: Any, x: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of ``forward`` by position and by name, as tensors; see `run_module`."""
    tensor = _converter(torch, model)
    if isinstance(x, dict):
        given = {str(key): tensor(value) for key, value in cast("dict[Any, Any]", x).items()}
        _check_names(model, given)
        return [], given
    if isinstance(x, tuple) or (isinstance(x, list) and _are_arrays(cast("list[Any]", x))):
        return [tensor(value) for value in cast("Sequence[Any]", x)], {}
    return [tensor(x)], {}


def _are_arrays(values: list[Any]) -> bool:
    return bool(values) and all(hasattr(value, "shape") for value in values)


def _check_names(model: Any, given: dict[str, Any]) -> None:
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return
    names = [parameter.name for parameter in parameters if parameter.kind not in (parameter.VAR_POSITIONAL,)]
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    unknown = [name for name in given if name not in names]
    if unknown and not takes_any:
        raise ArgumentError(f"{type(model).__name__}.forward takes {', '.join(names) or 'nothing'}; got {unknown[0]!r}")


def _converter(torch: Any, model: Any) -> Callable[[Any], Any]:
    """From arrays to tensors of the module's device and, where they are floating-point, its type."""
    first = next((held for held in (*model.parameters(), *model.buffers()) if held.is_floating_point()), None)

    def convert(value: Any) -> Any:
        tensor = value.detach().clone() if isinstance(value, torch.Tensor) else tensor_of(np.asarray(value))
        if first is None:
            return tensor
        return tensor.to(first.device, first.dtype) if tensor.is_floating_point() else tensor.to(first.device)

    return convert


@contextlib.contextmanager
def _recorded(name: str, layer: Any, captured: Masked) -> Generator[None]:
    """Each call of a layer; where it hands its result to a module of its own (an activation), that is its output."""
    waiting: list[list[Any]] = []

    def before(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("mask", arguments[1] if len(arguments) > 1 else None)
        is_mask = str(getattr(mask, "dtype", "")) == "torch.bool"
        captured.order.setdefault(name)
        captured.masks[name].append(array_of(mask) if is_mask else None)
        waiting.append([array_of((*arguments, *named.values())[0]), None])

    def inside(_module: Any, arguments: tuple[Any, ...]) -> None:
        if waiting and waiting[-1][1] is None and arguments:
            waiting[-1][1] = array_of(arguments[0])

    def after(_module: Any, _arguments: Any, output: Any) -> None:
        entry, leave = waiting.pop()
        captured[name].append((entry, array_of(output) if leave is None else leave))

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
    handles += [child.register_forward_pre_hook(inside) for child in layer.children()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def arrays(torch: Any, outputs: Any) -> Any:
    """Outputs as arrays, in their structure; what is no tensor, as it is."""
    return structured(outputs, lambda each: array_of(each) if isinstance(each, torch.Tensor) else each)
