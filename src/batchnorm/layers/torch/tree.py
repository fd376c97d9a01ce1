"""Walking a module tree: swap layers, freeze them."""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.errors import ArgumentError, NoBatchNorm

from .layer import Layer

__all__ = ["freeze", "reborn", "swap", "unfreeze"]

M = TypeVar("M", bound=nn.Module)


def swap(root: nn.Module, replacement: Callable[[nn.Module], nn.Module | None], who: str) -> nn.Module:
    """Replace modules of a tree, in place; the root itself is returned, replaced or not.

    A module that occurs in several places is replaced by one module. ``replacement`` gives None for what stays.
    """
    _check_module(root, who)
    known: dict[int, nn.Module] = {}

    def swapped(module: nn.Module) -> nn.Module:
        if id(module) not in known:
            known[id(module)] = replacement(module) or module
        return known[id(module)]

    for parent in list(root.modules()):
        for name, child in parent._modules.items():  # pyright: ignore[reportPrivateUsage]
            if child is not None:
                parent._modules[name] = swapped(child)  # pyright: ignore[reportPrivateUsage]
    return swapped(root)


def reborn(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """``layer`` as a ``kind``: the same parameters, buffers, hooks, flags and attributes in a new object."""
    new = kind.__new__(kind)
    new.__dict__.update(layer.__dict__)
    new.__dict__.pop("_known", None)  # of the calls of a ``layer`` of ours; another kind makes them otherwise
    # The dicts of hooks stay shared: a handle removes its hook from the dict that it was given.
    for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        new.__dict__[name] = layer.__dict__[name].copy()
    return new


def freeze(module: M, parameters: bool = True) -> M:
    """Freeze every batch norm in a tree: inference with the running statistics, which stay, whatever ``train()`` says.

    Parameters
    ----------
    module : Module
        A layer or anything that holds some; its batch norms must be ours (`convert`).
    parameters : bool
        Stop weight and bias from being trained as well.

    Returns
    -------
    Module
        ``module``.

    Raises
    ------
    ArgumentError
        A layer of torch's own, which the next ``train()`` would thaw; a layer without running statistics. Nothing is
        frozen then.
    NoBatchNorm
        No batch norm in ``module``.

    Examples
    --------
    >>> from batchnorm.torch import BatchNorm1d
    >>> model = freeze(nn.Sequential(nn.Linear(2, 2), BatchNorm1d(2)))
    >>> model.train()[1].training
    False
    """
    for layer in _layers(module, "freeze"):
        layer.freeze(parameters)
    return module


def unfreeze(module: M) -> M:
    """Undo `freeze` in a tree: the mode last asked for, and weight and bias trained where they were before."""
    for layer in _layers(module, "unfreeze"):
        layer.unfreeze()
    return module


def _check_module(module: Any, who: str) -> None:
    if not isinstance(module, nn.Module):
        raise ArgumentError(f"{who}: module must be a torch.nn.Module; got {type(module).__name__}.")


def _layers(module: nn.Module, who: str) -> list[Layer]:
    _check_module(module, who)
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    if not found:
        raise NoBatchNorm(f"{who}: there is no batch normalization in {type(module).__name__}.")
    ours: list[Layer] = []
    for name, layer in found.items():
        if not isinstance(layer, Layer):
            raise ArgumentError(
                f"{who}: layer {name or 'itself'!r} is a {type(layer).__module__}.{type(layer).__name__}, which the "
                f"next train() would thaw. Call batchnorm.torch.convert(model) first."
            )
        if layer.running_mean is None:
            raise ArgumentError(
                f"{who}: layer {name or 'itself'!r} has track_running_stats=False, so there is nothing to freeze it at."
            )
        ours.append(layer)
    return ours
