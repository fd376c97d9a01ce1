"""What is installed here, and what each missing extra would add. Nothing heavy is imported to find out."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from batchnorm import __version__
from batchnorm.api.results import Result
from batchnorm.engines.norms import ENGINES as NORMS
from batchnorm.render.document import plain

__all__ = ["Doctor", "doctor"]

# What a row names is the backend, where Keras is the door to one.
ENGINES = {
    name: engine.packages[::-1] if name.startswith("keras-") else engine.packages for name, engine in NORMS.items()
}
EXTRAS = {
    "keras": (("keras",), "runs .keras and .h5 models (--data, verify); layers for Keras 3"),
    "tensorflow": (("tensorflow", "keras"), "Keras on TensorFlow; runs SavedModel folders"),
    "jax": (("jax", "flax"), "Keras on JAX; the layer for Flax"),
    "onnx": (("onnx", "onnxruntime"), "runs .onnx files, which are read without it; live onnx.ModelProto objects"),
    "torch": (("torch",), "reads .pt files, runs .pt2 and TorchScript; Keras on PyTorch; layers for PyTorch"),
    "litert": (("ai-edge-litert",), "runs .tflite files, which are read without it"),
    "fast": (("numba",), "compiled kernels for the CPU; without them NumPy computes, several times slower"),
    "ray": (("ray",), "recalibration on several processes and machines"),
}
SAME = {"tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tf-nightly")}


@dataclass(frozen=True, slots=True)
class Engine:
    """A program that computes batch normalization.

    ``package`` is what it comes from, or the first of the packages it needs that is not installed: then ``version`` is
    None.
    """

    name: str
    package: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Extra:
    """An extra of this package."""

    name: str
    installed: bool
    adds: str


@dataclass(frozen=True, slots=True)
class Doctor(Result):
    """Versions, extras, engines and processors found."""

    schema: ClassVar[str] = "batchnorm/doctor/1"
    version: str
    python: str
    cpu: str
    gpu: str | None
    engines: tuple[Engine, ...]
    extras: tuple[Extra, ...]

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        return {"schema": self.schema, **plain(self)}


def doctor() -> Doctor:
    """Look around."""
    return Doctor(
        version=__version__,
        python=platform.python_version(),
        cpu=_cpu(),
        gpu=_gpu(),
        engines=tuple(_engine(name, packages) for name, packages in ENGINES.items()),
        extras=tuple(
            Extra(name, None not in map(_version, packages), adds) for name, (packages, adds) in EXTRAS.items()
        ),
    )


def _engine(name: str, packages: tuple[str, ...]) -> Engine:
    shown = next((package for package in packages if _version(package) is None), packages[0])
    return Engine(name, shown, _version(shown))


def _version(package: str) -> str | None:
    for name in SAME.get(package, (package,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else platform.machine()


def _gpu() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        found = subprocess.run(  # noqa: S603 - a fixed command line
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = found.stdout.strip().splitlines()
    return ", ".join(names) if found.returncode == 0 and names else None
