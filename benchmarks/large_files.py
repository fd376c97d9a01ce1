"""What list costs on files of 100 MB, beside files of the same headers with small arrays, and the format's own library.

    python benchmarks/large_files.py [--rounds 7]

Eleven convolutions of 512 channels, each with its batch normalization; the small twin has convolutions of 1 by 1 over
one group a channel, and so as many arrays, with as many channels to normalise: what list takes longer on the large file
is what it reads beside headers and batch normalizations. The own library looks at the name, shape and type of every
array and at no number. In one process, after one call that is not counted (imports, the disk's cache); medians. The
exit status is 1 if the large file takes over 1.25 times the small one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

LAYERS, CHANNELS = 11, 512


def torch_files(folder: Path, *, large: bool) -> None:
    """A checkpoint in both forms, .safetensors, an exported program and an ONNX file."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    nn, size, groups = torch.nn, (3 if large else 1), (1 if large else CHANNELS)
    # An activation between them, or the exporter to ONNX would fold the normalization away.
    blocks = [
        (nn.Conv2d(CHANNELS, CHANNELS, size, groups=groups), nn.ReLU(), nn.BatchNorm2d(CHANNELS)) for _ in range(LAYERS)
    ]
    model = nn.Sequential(*(layer for block in blocks for layer in block)).eval()
    torch.save(model.state_dict(), folder / "m.pt")
    save_file(model.state_dict(), folder / "m.safetensors")
    x = torch.zeros(1, CHANNELS, 2 * LAYERS + 1, 2 * LAYERS + 1)
    torch.export.save(torch.export.export(model, (x,)), folder / "m.pt2")
    torch.onnx.export(model, (x,), folder / "m.onnx", dynamo=False)


def keras_files(folder: Path, *, large: bool) -> None:
    """Both formats of Keras."""
    import keras

    layers = keras.layers
    side, groups = (3, 1) if large else (1, CHANNELS)
    blocks = [(layers.Conv2D(CHANNELS, side, groups=groups), layers.BatchNormalization()) for _ in range(LAYERS)]
    size = 2 * LAYERS + 1
    model = keras.Sequential([keras.Input((size, size, CHANNELS)), *(layer for block in blocks for layer in block)])
    model.save(folder / "m.keras")
    model.save(folder / "m.h5")


def headers_of_hdf5(stream: Any) -> int:
    """Name, shape and type of every dataset, by h5py."""
    import h5py

    found: list[Any] = []
    with h5py.File(stream) as file:
        file.visititems(
            lambda name, item: found.append((name, item.shape, item.dtype)) if isinstance(item, h5py.Dataset) else None
        )
    return len(found)


def headers_of_keras(path: Path) -> int:
    """Of the HDF5 file inside, read in place as the zip archive stores it."""
    import zipfile

    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as member:
        return headers_of_hdf5(member)


def headers_of_safetensors(path: Path) -> int:
    """By the safetensors package."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return len([(file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()) for name in file.keys()])


def headers_of_torch(path: Path) -> int:
    """By torch.load, the numbers mapped and not read."""
    import torch

    return len([(t.shape, t.dtype) for t in torch.load(path, mmap=True, weights_only=True).values()])


def headers_of_onnx(path: Path) -> int:
    """By the onnx package, which parses the whole file to get at them."""
    import onnx

    return len([(t.name, tuple(t.dims), t.data_type) for t in onnx.load(path).graph.initializer])


def headers_of_program(path: Path) -> int:
    """By torch.export.load, the only reader of it."""
    import torch

    return len([(t.shape, t.dtype) for t in torch.export.load(path).state_dict.values()])


OWN: dict[str, Callable[[Path], int]] = {
    "m.keras": headers_of_keras,
    "m.h5": headers_of_hdf5,
    "m.safetensors": headers_of_safetensors,
    "m.pt": headers_of_torch,
    "m.onnx": headers_of_onnx,
    "m.pt2": headers_of_program,
}


def median(call: Callable[[], object], rounds: int) -> float:
    """Seconds of a call, once it is warm."""
    call()
    taken: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def listed(path: Path) -> str:
    """What the command does."""
    from batchnorm.api.loading import list_layers

    found = list_layers(path)
    assert len(found.layers) == LAYERS
    return found.to_json()


def main() -> int:
    """Measure, print, and say whether only headers cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    met = True
    with tempfile.TemporaryDirectory() as name:
        folders = {large: Path(name, str(large)) for large in (True, False)}
        for large, folder in folders.items():
            folder.mkdir()
            torch_files(folder, large=large)
            keras_files(folder, large=large)
        print(f"{'file':14} {'size':>7} {'list':>9} {'small twin':>11} {'ratio':>6} {'own headers':>12}")
        for file, own in OWN.items():
            path, twin = folders[True] / file, folders[False] / file
            ours, small = (median(partial(listed, p), rounds) for p in (path, twin))
            theirs = median(partial(own, path), rounds)
            met = met and ours <= 1.25 * small
            print(
                f"{file:14} {path.stat().st_size / 1e6:4.0f} MB {1e3 * ours:7.1f}ms {1e3 * small:9.1f}ms "
                f"{ours / small:6.2f} {1e3 * theirs:10.1f}ms"
            )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
