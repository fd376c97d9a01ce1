"""Folded copies of live PyTorch modules; the module that is given stays as it is."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any, cast

from numpy.typing import NDArray

from batchnorm.engines.torch_state import tensor_of
from batchnorm.errors import Refused

from .change import Change

__all__ = ["folded", "unfoldable"]

OWN = ("torch.nn.", "batchnorm.")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def folded(model: Any, changes: Sequence[Change]) -> Any:
    """A copy in inference mode, with other weights, whose folded layers are ``nn.Identity``.

    Raises
    ------
    Refused
        The module cannot be copied.
    """
    nn: Any = sys.modules["torch"].nn
    try:
        made = copy.deepcopy(model)
    except Exception as error:  # what a class of the user's raises
        raise Refused(f"the module cannot be copied ({type(error).__name__}: {error}).") from error
    modules: dict[str, Any] = dict(made.named_modules(remove_duplicate=False))
    for change in changes:
        module = modules[change.operation.settings["module"]]
        module.weight = _parameter(nn, change.kernel, module.weight)
        module.bias = _parameter(nn, change.bias, module.weight)
        for norm in change.norms:
            _silence(nn, made, modules, norm.settings["module"])
    return made.eval()


def _parameter(nn: Any, array: NDArray[Any], like: Any) -> Any:
    return nn.Parameter(tensor_of(array, like.device).to(like.dtype), requires_grad=like.requires_grad)


def _silence(nn: Any, made: Any, modules: dict[str, Any], path: str) -> None:
    """Every name of a layer stands for nothing now."""
    gone = modules[path]
    for name in [name for name, module in modules.items() if module is gone]:
        owner, _, last = name.rpartition(".")
        made.get_submodule(owner)._modules[last] = nn.Identity()


def unfoldable(module: Any) -> str | None:
    """Why a module cannot be merged with another, or taken out; None where it can."""
    if any(getattr(module, name, None) for name in HOOKS):
        return "has hooks, which see what goes in or out"
    inner = [type(child).__name__ for child in module.children() if type(child).__name__ != "Identity"]
    if inner:
        return f"holds other modules ({inner[0]})"
    if "forward" in vars(module):
        return "has had its forward replaced by another"
    if isinstance(activation := getattr(module, "activation", None), str):
        return f"applies {activation} itself"
    if not _is_known(module):
        return f"is of a class of its own ({type(module).__name__}), which may do more"
    return None


def _is_known(module: Any) -> bool:
    """Whether a class does what its kind says: its forward is PyTorch's or this package's, or it is a frozen norm."""
    kind = cast("Any", type(module))
    written = next((each for each in kind.__mro__ if "forward" in vars(each)), kind)
    return written.__module__.startswith(OWN) or "frozen" in kind.__name__.lower()
