"""What each of Keras' layers is in the vocabulary of `batchnorm.core.graph`, by its class and config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

from numpy.typing import NDArray

from batchnorm.core.graph import Kind, Operation

from .keras_config import Config, Layer, is_builtin, is_norm_config

__all__ = ["Fetch", "described"]

Fetch = Callable[[Layer, int], NDArray[Any]]
"""Gives the array of that number of a layer, in the order in which Keras makes them."""

ACTIVATIONS = (
    "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "ThresholdedReLU", "Relu", "Relu6", "Sigmoid",
    "Silu", "Swish", "Gelu", "Elu", "Selu", "Tanh", "Softplus", "Softsign", "HardSigmoid", "HardSilu", "LeakyRelu",
    "LogSoftmax", "LogSigmoid", "Celu", "Glu", "Mish", "SoftShrink", "HardShrink", "HardTanh", "Squareplus",
)  # fmt: skip
RESHAPES = ("Flatten", "Reshape", "Permute", "RepeatVector", "Transpose", "ExpandDims", "Squeeze", "Ravel",
            "UpSampling1D",
            "UpSampling2D", "UpSampling3D")  # fmt: skip
DROPOUTS = ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianDropout",
            "GaussianNoise")  # fmt: skip
STOCHASTIC_DEPTHS = ("StochasticDepth", "DropPath", "DropConnect", "FixedDropout")
BINARY = {"Add": "add", "Subtract": "add", "Multiply": "other", "Divide": "other", "TrueDivide": "other"}
IDENTITIES = ("Identity", "ActivityRegularization", "InputLayer")


def described(
    operation: Operation, item: Config, layer: Layer, fetch: Fetch | None, extra: dict[str, Any], node: Any
) -> Operation:
    """The operation with its kind, weights and settings."""
    config = layer.config
    name = layer.kind.rpartition(">")[2]
    settings = extra | {"storage": layer.storage, "path": layer.names, **_computes(config)}
    if (why := _unfoldable(item, config)) is not None:
        settings["unfoldable"] = why
    if is_norm_config(config):
        return replace(operation, kind="batch_norm", settings=settings | {"axis": config.get("axis")})
    if ("Conv" in name and "filters" in config) or name.startswith("DepthwiseConv"):
        found = _convolution(name, config)
        if found is not None:
            kind, more = found
            return replace(operation, kind=kind, settings=settings | more, weights=_weights(layer, fetch, more))
    if name == "Dense" and "units" in config:
        more = _activation(config) | {"channel_axis": -1, "kernel_out_axis": 1, "kernel_in_axis": 0}
        return replace(operation, kind="dense", settings=settings | more, weights=_weights(layer, fetch, more))
    if name == "Activation":
        settings |= _activation(config)
    if (order := _permutation(name, config)) is not None:
        settings["permutation"] = order
    return replace(operation, kind=_kind(name, config, operation, item, node), settings=settings)


def _unfoldable(item: Config, config: Config) -> str | None:
    """Why what a class does cannot be told from its config; None where it can."""
    is_ours = str(item.get("registered_name")).startswith("batchnorm>")
    if is_ours and config.get("activation") in (None, "linear") and config.get("statistics", "moving") == "moving":
        return None
    if not is_builtin(item):
        return "is of a class of its own, which may do more"
    policy: Any = config.get("dtype")
    if isinstance(policy, dict) and "Quantized" in str(cast("Config", policy).get("class_name")):
        return "is quantised"
    if config.get("lora_rank") is not None:
        return "adds a low-rank product (LoRA) to its kernel"
    return None


def _computes(config: Config) -> dict[str, Any]:
    """The type a layer computes in, where its policy has another one for its weights: mixed_float16, mixed_bfloat16."""
    policy: Any = config.get("dtype")
    while isinstance(policy, dict):
        policy = cast("Config", policy).get("config", {}).get("name")
    return {"computes": str(policy).removeprefix("mixed_")} if str(policy).startswith("mixed_") else {}


def _kind(name: str, config: Config, operation: Operation, item: Config, node: Any) -> Kind:
    if name in ACTIVATIONS:
        return "identity" if name == "Activation" and config.get("activation") == "linear" else "activation"
    if name in DROPOUTS:
        if config.get("rate", config.get("stddev")) == 0:
            return "identity"
        return "stochastic_depth" if _drops_samples(config.get("noise_shape")) else "dropout"
    if name in STOCHASTIC_DEPTHS:
        return "stochastic_depth"
    if name in RESHAPES:
        return "reshape"
    if name.startswith("ZeroPadding"):
        return "pad"
    if "Pooling" in name or name in ("MaxPool", "AveragePool", "Mean", "Max"):
        return "pool"
    if name in ("Concatenate", "Concat"):
        return "concat"
    if name in ("Rescaling", "Normalization") or (name in BINARY and len(operation.inputs) == 1):
        return "elementwise_linear"
    if name in BINARY:
        return cast("Kind", BINARY[name])
    return "identity" if name in IDENTITIES else "other"


def _drops_samples(noise_shape: Any) -> bool:
    """Whole samples, not elements: a noise of shape (batch, 1, 1, 1)."""
    lengths = cast("list[Any]", noise_shape) if isinstance(noise_shape, (list, tuple)) else []
    return len(lengths) > 1 and all(length == 1 for length in lengths[1:])


def _permutation(name: str, config: Config) -> tuple[int, ...] | None:
    """The order in which a layer puts the axes, the batch among them."""
    given = config.get("dims" if name == "Permute" else "axes")
    if name not in ("Permute", "Transpose") or not isinstance(given, (list, tuple)):
        return None
    axes = tuple(cast("list[Any]", given))
    order = (0, *axes) if name == "Permute" else axes
    return order if sorted(order) == list(range(len(order))) else None


def _convolution(name: str, config: Config) -> tuple[Kind, dict[str, Any]] | None:
    digits = [letter for letter in name if letter.isdigit()]
    kernel = config.get("kernel_size")
    rank = int(digits[0]) if digits else 0
    if rank not in (1, 2, 3) or name not in (f"{kind}{rank}D{tail}" for kind in KINDS for tail in ("", "Transpose")):
        return None
    is_transposed = name.endswith("Transpose")
    more: dict[str, Any] = _activation(config) | {
        "rank": rank,
        "groups": config.get("groups", 1),
        "channel_axis": 1 if config.get("data_format") == "channels_first" else -1,
        "strides": _tuple(config.get("strides"), rank),
        "pads": _pads(config, kernel),
        "kernel_out_axis": -2 if is_transposed else -1,
        "kernel_in_axis": -1 if is_transposed else -2,
    }
    if name.startswith("Depthwise"):
        more |= {"depthwise": True, "groups": None}
    if name.startswith("Separable"):
        more |= {"separable": True, "kernel_index": 1}
    return ("conv_transpose" if is_transposed else "conv"), more


KINDS = ("Conv", "DepthwiseConv", "SeparableConv")


def _pads(config: Config, kernel: Any) -> bool:
    if config.get("padding", "valid") == "valid":
        return False
    return any(size != 1 for size in _tuple(kernel, 1))


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    return tuple(cast("list[int]", value)) if isinstance(value, (list, tuple)) else (int(value or 1),) * rank


def _activation(config: Config) -> dict[str, Any]:
    activation: Any = config.get("activation")
    if activation in (None, "linear"):
        return {}
    if isinstance(activation, dict):
        entry = cast("Config", activation)
        activation = entry.get("registered_name") or entry.get("class_name") or "custom"
    return {"activation": str(activation)}


def _weights(layer: Layer, fetch: Fetch | None, more: dict[str, Any]) -> dict[str, Callable[[], NDArray[Any]]]:
    if fetch is None:
        return {}
    first = int(more.get("kernel_index", 0))
    found = {"kernel": partial(fetch, layer, first)}
    if layer.config.get("use_bias", True) is not False:
        found["bias"] = partial(fetch, layer, first + 1)
    return found
