"""PyTorch as a reader of its own files: with ``weights_only``, so that nothing in them is run."""

# PyTorch's own types are partly unknown to a type checker, and it is not imported before it is needed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import argparse
import contextlib
import itertools
import pathlib
import pickletools
import re
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError, MissingExtra, ModelFileError, require

from .torch_state import tensor_of

__all__ = [
    "dtype_of",
    "fill",
    "is_plain",
    "is_spread",
    "load_into",
    "load_places",
    "load_script",
    "load_weights_only",
    "place_of",
    "save_older",
]

OLDEST = (2, 10)
MOST_SHOWN = 5
AGAIN = "Save or download the file again"
PICKLE = b"\x80"
MOST_OPERATIONS = 1_000_000
DATA = ("torch.", "collections.", "numpy.", "builtins.", "__builtin__.", "_codecs.")
BLOCKED = re.compile(r"GLOBAL ([\w.<>]+)")


def load_weights_only(path: str, *, is_zip: bool) -> Any:
    """What a checkpoint holds: containers, numbers, strings and tensors.

    Parameters
    ----------
    path : str
        A file of ``torch.save``.
    is_zip : bool
        Whether it is of the newer form, whose tensors are mapped and read when they are looked at.

    Raises
    ------
    ModelFileError
        It needs code, which is named; or it is damaged.
    MissingExtra
        PyTorch is not installed, or older than the versions whose loader is known to be safe.
    """
    torch = _torch("Reading PyTorch's files")
    try:
        with torch.serialization.safe_globals(_inert()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        raise _refusal(path, error) from None


def load_places(path: str) -> Any:
    """As `load_weights_only` of the newer form; the tensors know where in the file they lie, and hold no numbers."""
    _torch("Writing PyTorch's files")
    fake: Any = require("torch._subclasses.fake_tensor", "torch", "Writing PyTorch's files")
    with fake.FakeTensorMode():
        return load_weights_only(path, is_zip=False)


def place_of(tensor: Any) -> int:
    """The byte of the file at which a tensor of `load_places` begins.

    Raises
    ------
    ModelFileError
        Its numbers do not lie one behind the other.
    """
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None or not tensor.is_contiguous():
        raise ModelFileError("this checkpoint keeps a layer's statistics in pieces. Load it and save it again.")
    return int(start) + int(tensor.storage_offset()) * int(tensor.element_size())


def fill(tensor: Any, values: NDArray[Any]) -> None:
    """Give a tensor other numbers, in place."""
    tensor.copy_(tensor_of(values).reshape(tensor.shape))


def save_older(value: Any, path: pathlib.Path) -> None:
    """Write a checkpoint in the older form."""
    torch = _torch("Writing PyTorch's files")
    torch.save(value, path, _use_new_zipfile_serialization=False)


def load_script(path: str) -> Any:
    """A TorchScript archive; loading it runs code of the file, so the caller must have been told to trust it."""
    torch = _torch("Reading TorchScript")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(path, map_location="cpu")
    except Exception as error:
        raise _damaged(path, error) from None


def load_into(module: Any, state: dict[str, NDArray[Any]]) -> None:
    """Load a state dict into a live module.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters and buffers are replaced.
    state : dict of str to array
        Under the module's own names.

    Raises
    ------
    ArgumentError
        Names are missing, or shapes differ.
    """
    wanted: dict[str, Any] = module.state_dict()
    needed = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    if needed:
        raise ArgumentError(f"--weights: the file lacks {', '.join(map(repr, needed[:MOST_SHOWN]))} of the module")
    for name, each in state.items():  # before anything is loaded: PyTorch would keep what fits
        shape = tuple(getattr(wanted.get(name), "shape", each.shape))
        if shape != each.shape:
            raise ArgumentError(f"--weights: {name!r} has shape {each.shape} in the file and {shape} in the module")
    try:
        module.load_state_dict({name: tensor_of(each) for name, each in state.items()}, strict=False)
    except RuntimeError as error:
        raise ArgumentError(f"--weights: {_one_line(str(error))[:300]}") from None


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor with its numbers in memory."""
    torch = _torch("Reading PyTorch's files")
    if not isinstance(value, torch.Tensor):
        return False
    is_dense = value.layout == torch.strided and not value.is_quantized and not value.is_complex()
    return is_dense and value.device.type != "meta" and type(value) in (torch.Tensor, torch.nn.Parameter)


def is_spread(tensor: Any) -> bool:
    """Whether a tensor claims more numbers than its memory holds: a few bytes of a file, repeated without end."""
    return int(tensor.numel()) * int(tensor.element_size()) > int(tensor.untyped_storage().nbytes())


def dtype_of(tensor: Any) -> str:
    """NumPy's name of a tensor's type."""
    return str(tensor.dtype).removeprefix("torch.")


def _torch(purpose: str) -> Any:
    torch: Any = require("torch", "torch", purpose)
    found = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    if found is not None and (int(found[1]), int(found[2])) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise MissingExtra(
            f"{purpose} needs torch {wanted} or newer, whose loader runs no code of the file; {torch.__version__} is "
            "installed. Install it with: pip install --upgrade 'batchnorm[torch]'"
        )
    return torch


def _inert() -> list[Any]:
    """Classes that training scripts leave in checkpoints, and that do nothing but hold data."""
    scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # pyright: ignore[reportAssignmentType]
    rebuilt: Callable[..., Any] = np.zeros(0).__reduce__()[0]  # pyright: ignore[reportAssignmentType]
    types_of_numbers = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdU"]
    return [
        argparse.Namespace,
        types.SimpleNamespace,
        *(dict, list, set, int, float, str, bool),  # what a defaultdict makes where nothing is
        (_plain, "collections.defaultdict"),  # whose items PyTorch's loader does not set
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        np.dtype,
        np.ndarray,
        *dict.fromkeys(types_of_numbers),
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
        (rebuilt, "numpy._core.multiarray._reconstruct"),
        (rebuilt, "numpy.core.multiarray._reconstruct"),
    ]


def _plain(*_factory: Any) -> dict[Any, Any]:
    return {}


def _refusal(path: str, error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        return _damaged(path, error)
    blocked = BLOCKED.search(str(error))
    named = blocked[1] if blocked is not None else _named_code(path)
    if named is None:
        return _damaged(path, error)
    return ModelFileError(
        f"{path}: it needs code to be loaded ({_one_line(named)[:200]}), and nothing of a file is run. Save "
        "model.state_dict() instead, or pass the model as package.module:name with --weights."
    )


def _named_code(path: str) -> str | None:
    """The first function or class that a plain pickle names, of those that PyTorch's loader did not get to.

    The loader stops at the first operation that torch.save does not write, as those of protocol 4.
    """
    texts: list[str] = []
    with contextlib.suppress(Exception), open(path, "rb") as stream:  # a damaged pickle fails in any way
        if stream.read(2)[:1] != PICKLE:
            return None
        stream.seek(0)
        for operation, value, _ in itertools.islice(pickletools.genops(stream), MOST_OPERATIONS):
            name = None
            if isinstance(value, str):
                texts.append(value)
            if operation.name == "STACK_GLOBAL":
                name = ".".join(texts[-2:])
            elif operation.name == "GLOBAL":
                name = str(value).replace(" ", ".")
            if name is not None and not name.startswith(DATA):
                return name
    return None


def _damaged(path: str, error: Exception) -> ModelFileError:
    said = str(error).partition("WeightsUnpickler error:")
    text = _one_line((said[2] or said[0]).partition("Check the documentation")[0])[:200]
    return ModelFileError(f"{path}: PyTorch cannot read it ({type(error).__name__}: {text}). {AGAIN}.")


def _one_line(text: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(plain.split()))
