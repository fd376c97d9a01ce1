"""The table of docs/CONVENTIONS.md, measured on the layers themselves.

    python docs/conventions.py            write the table anew
    python docs/conventions.py flax       print the rows of one framework as JSON

Each framework runs in a process of its own. A layer is a `Door`: how to make, train, freeze and read it; a new row is a
new door in the list of its framework. Everything in a cell is measured by `row`, nothing is written by hand.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DOCUMENT = Path(__file__).parent / "CONVENTIONS.md"
FRAMEWORKS = ("numpy", "keras", "torch", "flax")
COLUMNS = (
    "layer",
    "momentum",
    "it is the share",
    "epsilon",
    "stored variance",
    "empty batch",
    "one element a channel",
    "everything masked",
    "NaN in a batch",
    "16-bit module",
    "frozen, then training mode",
    "initial values in inference after 1 update",
)
Array = NDArray[Any]


@dataclass(frozen=True)
class Door:
    """One layer of two features on the last axis of a matrix.

    Attributes
    ----------
    name : str
        As the table shows it.
    kind : type
        The class, for its signature.
    make : callable
        Options as the class spells them -> a new layer.
    train : callable
        Layer, batch, mask (None where the layer takes none) -> output in training mode, the layer updated.
    infer : callable
        Layer, batch -> output in inference mode.
    statistics : callable
        Layer -> moving mean, moving variance as they are stored.
    freeze : callable
        Freeze a layer, then put the model around it in training mode; None where nothing freezes it.
    masks : bool
        Whether the layer takes a mask.
    half : dict
        The options of a module in 16 bits; None: the layer is only given 16-bit input.
    counter : callable, optional
        Layer -> its counter of batches.
    """

    name: str
    kind: Any
    make: Callable[..., Any]
    train: Callable[[Any, Array, Array | None], Any]
    infer: Callable[[Any, Array], Any]
    statistics: Callable[[Any], tuple[Any, ...]]
    freeze: Callable[[Any], None] | None
    masks: bool = True
    half: dict[str, Any] | None = None
    counter: Callable[[Any], int] | None = None


def row(door: Door) -> dict[str, str]:
    """One row of the table."""
    options = inspect.signature(door.kind.__init__).parameters
    epsilon = next(option.default for name, option in options.items() if name in ("epsilon", "eps"))
    cells = (
        f"`{door.name}`",
        f"{options['momentum'].default:g}",
        _share(door),
        f"{epsilon:g}",
        _divisor(door),
        _after(door, np.zeros((0, 2), np.float32)),
        _after(door, np.array([[3.0, 5.0]], np.float32)),
        _after(door, BATCH, np.zeros(len(BATCH), bool)) if door.masks else "takes no mask",
        _after(door, np.where(BATCH == BATCH[1, 1], np.nan, BATCH).astype(np.float32)),
        _half(door),
        _frozen(door),
        _initial(door),
    )
    return dict(zip(COLUMNS, cells, strict=True))


BATCH = np.array([[8.0, -1.0], [12.0, 2.0], [9.0, 3.0], [11.0, 8.0]], np.float32)


def _statistics(door: Door, layer: Any) -> Array:
    return np.stack([np.asarray(value, np.float64).reshape(-1) for value in door.statistics(layer)])


def _share(door: Door) -> str:
    layer = door.make(momentum=0.25)
    door.train(layer, BATCH, None)
    kept = 1 - _statistics(door, layer)[0, 0] / BATCH[:, 0].mean()
    return {0.25: "kept", 0.75: "taken"}[round(float(kept), 3)]


def _divisor(door: Door) -> str:
    layer = door.make()
    before = _statistics(door, layer)[1, 0]
    door.train(layer, BATCH, None)
    taken = _statistics(door, layer)[0, 0] / BATCH[:, 0].mean()
    variance = (_statistics(door, layer)[1, 0] - (1 - taken) * before) / taken
    return {1.0: "/ n", 1.333: "/ (n - 1)"}[round(float(variance / BATCH[:, 0].var()), 3)]


def _after(door: Door, batch: Array, mask: Array | None = None) -> str:
    layer = door.make()
    door.train(layer, BATCH, None)
    before, batches = _statistics(door, layer), _count(door, layer)
    try:
        y = np.asarray(door.train(layer, batch, mask), np.float64)
    except Exception as error:
        return f"{type(error).__name__}"
    after = _statistics(door, layer)
    if np.isnan(after).any():
        return "NaN for good"
    changed = np.abs(after - before).max(axis=0) > 0
    shown = "" if not y.size or np.isnan(y).any() else f"output {_what(y, batch, before)}, "
    if not changed.any():
        return f"{shown}no update" + (", but counted as one" if _count(door, layer) > batches else "")
    if not changed.all():
        return f"{shown}that channel is not updated"
    return f"{shown}updated: variance {before[1, 0]:.4g} to {after[1, 0]:.4g}"


def _count(door: Door, layer: Any) -> int:
    return door.counter(layer) if door.counter else 0


def _what(y: Array, batch: Array, moving: Array) -> str:
    if not np.abs(y).max() > 0:
        return "beta"
    with_moving = (batch - moving[0]) / np.sqrt(moving[1] + 1e-5)
    return "from moving statistics" if np.abs(y - with_moving).max() < 1e-2 * np.abs(y).max() else "of neither"


def _half(door: Door) -> str:
    layer = door.make(**(door.half or {}))
    door.train(layer, BATCH.astype("float32" if door.half else "float16"), None)
    stored = {str(getattr(value, "dtype", "")).rpartition(".")[2] for value in door.statistics(layer)}
    return f"{'/'.join(sorted(stored))} statistics"


def _frozen(door: Door) -> str:
    if door.freeze is None:
        return "no such thing"
    layer = door.make()
    before = _statistics(door, layer)
    door.freeze(layer)
    door.train(layer, BATCH, None)
    return "stays frozen" if np.array_equal(_statistics(door, layer), before) else "thaws"


def _initial(door: Door) -> str:
    def share(**options: Any) -> float:
        layer = door.make(**options)
        door.train(layer, BATCH, None)
        low, high = (float(np.asarray(door.infer(layer, np.full((4, 2), v, np.float32)))[0, 0]) for v in (0.0, 100.0))
        mean = -100 * low / (high - low)
        return 1 - mean / float(BATCH[:, 0].mean())

    usual = f"{share():.0%}"
    if "statistics" not in inspect.signature(door.kind.__init__).parameters:
        return usual
    return f"{usual}; debiased {abs(share(statistics='debiased')):.0%}"


def numpy_doors() -> Iterator[Door]:
    """Ours on NumPy arrays."""
    import batchnorm as bn

    def freeze(layer: Any) -> None:
        layer.trainable = False

    def make(**options: Any) -> Any:
        layer = bn.BatchNormalization(**options)
        layer.build((None, 2))
        return layer

    yield Door(
        "batchnorm.BatchNormalization",
        bn.BatchNormalization,
        make,
        lambda layer, x, mask: layer(x, training=True, mask=mask),
        lambda layer, x: layer(x),
        lambda layer: (layer.moving_mean, layer.moving_variance),
        freeze,
    )


def keras_doors() -> Iterator[Door]:
    """Keras' layer and ours, on the backend of the environment."""
    import keras

    kinds = {"keras.layers.BatchNormalization": keras.layers.BatchNormalization}
    if importlib.util.find_spec("batchnorm.keras"):
        from batchnorm.keras import BatchNormalization

        kinds = {"batchnorm.keras.BatchNormalization": BatchNormalization} | kinds

    def freeze(layer: Any) -> None:
        layer.trainable = False

    def numbers(value: Any) -> Array:
        return keras.ops.convert_to_numpy(value).astype(np.float64)

    def make(kind: Any, **options: Any) -> Any:
        layer = kind(**options)
        layer.build((None, 2))
        return layer

    for name, kind in kinds.items():
        yield Door(
            name,
            kind,
            functools.partial(make, kind),
            lambda layer, x, mask: numbers(layer(x, training=True, mask=mask)),
            lambda layer, x: numbers(layer(x)),
            lambda layer: tuple(keras.ops.convert_to_numpy(v) for v in (layer.moving_mean, layer.moving_variance)),
            freeze,
            half={"dtype": "bfloat16"},
        )


def torch_doors() -> Iterator[Door]:
    """PyTorch's layer and ours."""
    import torch

    kinds: dict[str, Any] = {"torch.nn.BatchNorm1d": torch.nn.BatchNorm1d}
    freeze: Any = {"torch.nn.BatchNorm1d": lambda layer: layer.eval()}
    if importlib.util.find_spec("batchnorm.torch"):
        import batchnorm.torch as own

        kinds = {"batchnorm.torch.BatchNorm1d": own.BatchNorm1d} | kinds
        freeze["batchnorm.torch.BatchNorm1d"] = own.freeze

    def run(layer: Any, x: Array, mask: Array | None, training: bool) -> Array:
        layer.train(training)
        tensor = torch.as_tensor(np.ascontiguousarray(x)).to(layer.weight.dtype)
        y = layer(tensor) if mask is None else layer(tensor, mask=torch.as_tensor(mask))
        return y.detach().float().numpy()

    for name, kind in kinds.items():
        yield Door(
            name,
            kind,
            lambda kind=kind, **options: kind(2, **options),
            lambda layer, x, mask: run(layer, x, mask, True),
            lambda layer, x: run(layer, x, None, False),
            lambda layer: _Stored.pair(layer.running_mean, layer.running_var),
            freeze[name],
            masks=name.startswith("batchnorm"),
            half={"dtype": torch.bfloat16},
            counter=lambda layer: int(layer.num_batches_tracked),
        )


class _Stored:
    """A tensor of a type that NumPy may lack, with the name of that type."""

    def __init__(self, tensor: Any) -> None:
        self.dtype, self._values = tensor.dtype, tensor.detach().float().numpy().copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self._values.astype(dtype or self._values.dtype)

    @classmethod
    def pair(cls, mean: Any, variance: Any) -> tuple[_Stored, _Stored]:
        return cls(mean), cls(variance)


def flax_doors() -> Iterator[Door]:
    """Flax' layer and ours."""
    import jax.numpy as jnp
    from flax import nnx

    import batchnorm.flax as own

    def hold(layer: Any) -> None:
        layer.eval()
        layer.train()

    def keep(layer: Any) -> None:
        own.freeze(layer)
        layer.train()

    def masked(x: Array, mask: Array | None) -> Any:
        return None if mask is None else jnp.asarray(mask)[:, None]

    for name, kind, freeze in (
        ("batchnorm.flax.BatchNorm", own.BatchNorm, keep),
        ("flax.nnx.BatchNorm", nnx.BatchNorm, hold),
    ):
        yield Door(
            name,
            kind,
            lambda kind=kind, **options: kind(2, rngs=nnx.Rngs(0), **options),
            lambda layer, x, mask: layer(jnp.asarray(x), mask=masked(x, mask)),
            lambda layer, x: layer(jnp.asarray(x), use_running_average=True),
            lambda layer: (layer.mean[...], layer.var[...]),
            freeze,
            half={"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16},
        )


DOORS = {"numpy": numpy_doors, "keras": keras_doors, "torch": torch_doors, "flax": flax_doors}


def rows_of(framework: str) -> list[dict[str, str]]:
    """The rows of one framework, measured in a new process."""
    environment = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"} | os.environ
    command = [sys.executable, __file__, framework]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def lines_of(rows: list[dict[str, str]]) -> list[str]:
    """Rows as lines of a Markdown table, without its head."""
    return ["| " + " | ".join(cells.values()) + " |" for cells in rows]


def written(rows: list[dict[str, str]]) -> str:
    """The document with its table made of these rows."""
    begin, end = "<!-- table: python docs/conventions.py -->\n", "<!-- end of table -->"
    before, _, rest = DOCUMENT.read_text().partition(begin)
    _, _, after = rest.partition(end)
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return before + begin + "\n".join(head + lines_of(rows)) + "\n" + end + after


def main() -> None:
    """See the module."""
    if len(sys.argv) > 1:
        warnings.simplefilter("ignore")
        with np.errstate(all="ignore"):
            print(json.dumps([row(door) for door in DOORS[sys.argv[1]]()]))
    else:
        DOCUMENT.write_text(written([one for framework in FRAMEWORKS for one in rows_of(framework)]))


if __name__ == "__main__":
    main()
