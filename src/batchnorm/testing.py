"""For tests: that looking at a model leaves it as it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.errors import ArgumentError

__all__ = ["assert_unchanged"]

State = dict[str, Any]
MOST_NAMED = 8
TORCH_SLOTS = ("_parameters", "_buffers", "_modules")


@contextlib.contextmanager
def assert_unchanged(*models: Any) -> Generator[None]:
    """Whatever is done inside leaves the models byte-identical, also where it raises.

    Compared are weights, statistics and their types, training and trainable flags, hooks and what else was put on a
    layer, gradients, and the random state of Python, NumPy, PyTorch and Keras' own generators. Of a file, its bytes.

    Parameters
    ----------
    *models : object or path
        A live ``keras.Model`` or layer, a ``torch.nn.Module``, a ``flax.nnx.Module``, a layer of this package on NumPy
        arrays, or the path of a file or folder. None at all compares the random state alone.

    Raises
    ------
    AssertionError
        On leaving, if something changed; the message names it. An exception raised inside stays its context.
    ArgumentError
        An object of no known kind.

    Examples
    --------
    >>> import batchnorm as bn
    >>> layer = bn.BatchNormalization()
    >>> y = layer(np.ones((2, 1)))
    >>> with assert_unchanged(layer):
    ...     found = bn.explain(layer, x=[1, 5])
    """
    before = _states(models)
    try:
        yield
    finally:
        changed = _changed(before, _states(models))
        if changed:
            more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
            raise AssertionError(f"assert_unchanged: changed: {', '.join(changed[:MOST_NAMED])}{more}")


def _states(models: Iterable[Any]) -> State:
    found: State = dict(_random_states())
    for number, model in enumerate(models):
        prefix = f"model {number + 1}: " if number else ""
        found |= {f"{prefix}{name}": value for name, value in _state(model)}
    return found


def _changed(before: State, after: State) -> list[str]:
    # A framework that was imported inside has a random state now, and had none that could change.
    new = (name for name in after if name not in before and not name.startswith("random state"))
    names = [*before, *new]
    absent = object()
    return [name for name in names if before.get(name, absent) != after.get(name, absent)]


def _state(model: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(model, (str, os.PathLike)):
        return _of_file(Path(model))  # pyright: ignore[reportUnknownArgumentType]
    for module, place, read in LIVE:
        kind: Any = sys.modules.get(module)
        for part in place.split("."):
            kind = getattr(kind, part, None)
        if kind is not None and isinstance(model, kind):
            return read(model)
    raise ArgumentError(
        f"assert_unchanged: cannot compare a {type(model).__name__}; give a keras.Model or layer, a torch.nn.Module, a "
        "flax.nnx.Module, a batchnorm.BatchNormalization, or the path of a file."
    )


def _of_file(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.exists():
        raise ArgumentError(f"assert_unchanged: no file {str(path)!r}.")
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            yield f"file {file}", hashlib.sha256(file.read_bytes()).hexdigest()


def _of_keras(model: Any) -> Iterator[tuple[str, Any]]:
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer is not None else ())]
    for number, variable in enumerate(variables):
        yield f"variable {number} {variable.path}", _bytes(sys.modules["keras"].ops.convert_to_numpy(variable))
        yield f"trainable of variable {number} {variable.path}", variable.trainable
    for number, layer in enumerate(model._flatten_layers()):
        yield f"flags of layer {number} {layer.name}", (layer.trainable, layer.built, sorted(_own(layer)))


def _of_torch(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules(remove_duplicate=False):
        own = _own(module)
        yield f"flags of {name or 'the module'}", (module.training, sorted(own))
        for key, value in own.items():
            if key in TORCH_SLOTS:
                yield f"{name}.{key}", list(value)
            elif "hooks" in key:
                hooks: dict[Any, Any] = value or {}
                yield f"{name}.{key}", {number: id(hook) for number, hook in hooks.items()}
            elif isinstance(value, (bool, int, float, str, type(None))):
                yield f"{name}.{key}", value
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        yield name, (_bytes(_host(tensor)), tensor.requires_grad, str(tensor.device))
        yield f"gradient of {name}", None if tensor.grad is None else _bytes(_host(tensor.grad))


def _own(value: Any) -> dict[str, Any]:
    return value.__dict__


def _host(tensor: Any) -> Any:
    torch: Any = sys.modules["torch"]
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        return np.zeros(0)  # of a lazy module, before its first call
    # Every byte, whatever the type: NumPy has no bfloat16.
    host: Any = tensor.detach().cpu().contiguous().reshape(-1)
    return host.view(torch.uint8).numpy()


def _of_flax(model: Any) -> Iterator[tuple[str, Any]]:
    nnx: Any = sys.modules["flax.nnx"]
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        name, value = "/".join(map(str, path)), variable.get_value()
        keyed = "key<" in str(getattr(value, "dtype", ""))
        data: Any = sys.modules["jax"].random.key_data(value) if keyed else value
        yield name, _bytes(np.asarray(data))
    for path, module in nnx.iter_modules(model):
        plain = {k: v for k, v in _own(module).items() if isinstance(v, (bool, int, float, str, type(None)))}
        yield f"flags of {'/'.join(map(str, path))}", (plain, sorted(_own(module)))


def _of_numpy(model: Any) -> Iterator[tuple[str, Any]]:
    for name, value in _own(model).items():
        if name == "_state":
            yield from ((key, _bytes(array)) for key, array in value.items())
        else:
            yield name, _bytes(value) if isinstance(value, np.ndarray) else _plain(value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else (id(value), repr(value))


def _bytes(array: Any) -> tuple[str, tuple[int, ...], str]:
    values = np.asarray(array)
    return str(values.dtype), values.shape, hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _random_states() -> Iterator[tuple[str, Any]]:
    yield "random state of Python", random.getstate()
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one is what could change
    yield (
        "random state of NumPy",
        (_bytes(state["state"]["key"]), state["state"]["pos"], state["has_gauss"], state["gauss"]),
    )
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "get_rng_state"):
        yield "random state of PyTorch", _bytes(torch.get_rng_state().numpy())
        if torch.cuda.is_initialized():
            for place, cuda in enumerate(torch.cuda.get_rng_state_all()):
                yield f"random state of GPU {place}", _bytes(cuda.numpy())
    keras_state: Any = sys.modules.get("keras.src.backend.common.global_state")
    generator: Any = getattr(keras_state, "GLOBAL_STATE_TRACKER", None)
    held: Any = getattr(generator, "global_seed_generator", None)
    if held is not None:
        yield "random state of Keras", _bytes(sys.modules["keras"].ops.convert_to_numpy(held.state))


LIVE = (
    ("keras", "layers.Layer", _of_keras),
    ("torch", "nn.Module", _of_torch),
    ("flax.nnx", "Module", _of_flax),
    ("batchnorm.layers.numpy", "BatchNormalization", _of_numpy),
)
