"""What the statistics of a recalibration cost beside the forward of the same pass, in every engine.

``python benchmarks/recalibration_cost.py [torch pt2 onnx keras-torch keras-tensorflow keras-jax nnx]``; all of them by
default, each in a process of its own, on one thread. Six 3 x 3 convolutions of 64 channels, each with a batch
normalization, on 32 x 32 images: bound by arithmetic, as networks are. Rounds are interleaved; a ratio is the median of
the rounds' ratios, of processor time, which a busy machine does not change.

inference: the model as it stands; training: the framework's own forward in training mode, where it has one; one-pass:
training mode with the statistics of all six layers; sequential: inference mode with those of the last layer.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SINGLE = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
ENGINES = ("torch", "pt2", "onnx", "keras-torch", "keras-tensorflow", "keras-jax", "nnx")
BATCH, WIDTH, DEPTH, SIDE, ROUNDS = 32, 64, 6, 32, 15


def torch_model():
    """The network in PyTorch."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, WIDTH, 3, padding=1, bias=False)]
    for _ in range(DEPTH):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))


def keras_model():
    """The network in Keras."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((SIDE, SIDE, 3)), keras.layers.Conv2D(WIDTH, 3, padding="same", use_bias=False)]
    for _ in range(DEPTH):
        layers += [keras.layers.Conv2D(WIDTH, 3, padding="same", use_bias=False)]
        layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])


def nnx_model():
    """The network in Flax."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, WIDTH, (3, 3), use_bias=False, rngs=rngs)
            self.convs = nnx.List(nnx.Conv(WIDTH, WIDTH, (3, 3), use_bias=False, rngs=rngs) for _ in range(DEPTH))
            self.norms = nnx.List(nnx.BatchNorm(WIDTH, rngs=rngs) for _ in range(DEPTH))

        def __call__(self, x):
            x = self.stem(x)
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = nnx.relu(norm(conv(x)))
            return x.mean((1, 2))

    return Net(nnx.Rngs(0))


def case(engine):
    """The model as it is given to this package, a batch, and its own forward in training mode or None."""
    import numpy as np

    x = np.random.default_rng(0).normal(0, 1, (BATCH, SIDE, SIDE, 3)).astype("float32")
    first = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    if engine in ("torch", "pt2", "onnx"):
        import torch

        model, tensor = torch_model(), torch.from_numpy(first)
        place = Path(tempfile.mkdtemp()) / f"model.{engine}"
        if engine == "torch":
            import copy

            twin = copy.deepcopy(model).train()
            return model, first, torch.no_grad()(lambda: twin(tensor))
        if engine == "pt2":
            torch.export.save(torch.export.export(model.eval(), (tensor,)), place)
        else:
            torch.onnx.export(model.eval(), (tensor,), place, dynamo=False, do_constant_folding=False,
                              training=torch.onnx.TrainingMode.PRESERVE)  # fmt: skip
            return str(place), first, onnx_training(place, first)
        return str(place), first, None
    if engine == "nnx":
        model = nnx_model()
        twin = nnx_model()
        return model, x, lambda: twin(x).block_until_ready()
    model = keras_model()
    return model, x, lambda: model(x, training=True)


def onnx_training(place, x):
    """The forward of onnxruntime's own training mode: each node with `training_mode` and its outputs, as exported."""
    import onnx
    import onnxruntime

    model = onnx.load(place)
    for number, node in enumerate(each for each in model.graph.node if each.op_type == "BatchNormalization"):
        kept = [each for each in node.attribute if each.name not in ("training_mode", "momentum")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("training_mode", 1)])
        del node.output[1:]
        node.output.extend([f"mean_{number}", f"variance_{number}"])
    data, options = model.SerializeToString(), single(onnxruntime.SessionOptions())
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})


def timed(call):
    """Seconds of this process' own work."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(engine):
    """One line of the table."""
    import batchnorm as bn

    model, x, training = case(engine)
    if engine == "onnx":
        import onnxruntime

        plain = onnxruntime.SessionOptions
        onnxruntime.SessionOptions = lambda: single(plain())
    bench = bn.load(model).bench()
    names = [record.name for record in bench.records]
    calls = {
        "inference": lambda: bench.outputs(x),
        "one-pass": lambda: bench.measure(x, names, names),
        "sequential": lambda: bench.measure(x, names[-1:]),
    }
    if training is not None:
        calls["training"] = training
    times = {name: [] for name in calls}
    with bench.session():
        bench.trace(x)
        for round in range(ROUNDS + 2):
            for name, call in calls.items():
                seconds = timed(call)
                if round > 1:
                    times[name].append(seconds)
    base = statistics.median(times["inference"])
    over = {
        (name, other): statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))
        for name in ("one-pass", "sequential")
        for other in ("inference", "training")
        if other in times
    }
    print(
        f"| {engine} | {1e3 * base:.0f} | {1e3 * statistics.median(times.get('training', [0])):.0f} "
        f"| {over['one-pass', 'inference']:.3f} | {over.get(('one-pass', 'training'), float('nan')):.3f} "
        f"| {over['sequential', 'inference']:.3f} |",
        flush=True,
    )


def single(options):
    """Sessions of onnxruntime on one thread."""
    options.intra_op_num_threads = 1
    return options


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2])
    else:
        print("| engine | inference, ms | training, ms | one-pass / inference | one-pass / training "
              "| sequential / inference |\n|---|---|---|---|---|---|", flush=True)  # fmt: skip
        for engine in sys.argv[1:] or ENGINES:
            backend = {"KERAS_BACKEND": engine.partition("-")[2]} if engine.startswith("keras") else {}
            command = [sys.executable, __file__, "--one", engine]
            subprocess.run(command, env={**os.environ, **SINGLE, **backend}, check=True)
