"""TensorFlow's fused operation in a tf.function: channels last, as it exists on the CPU. No output buffers."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import tensorflow as tf

from speed.data import EPSILON

from . import Prepared, need

THREADS = int(os.environ.get("BENCHMARK_THREADS", "2"))
tf.config.threading.set_intra_op_parallelism_threads(THREADS)
tf.config.threading.set_inter_op_parallelism_threads(1)


def versions() -> dict[str, str]:
    """TensorFlow's."""
    return {"tensorflow": tf.__version__}


def prepare(case, data):
    """Rank 4 is what the operation takes: other ranks are reshaped before, outside the timing."""
    need(case.buffers == "allocated", "returns new tensors")
    need(case.layout == "last", "the fused operation is channels-last on the CPU")
    shape = (case.shape[0], -1, 1, case.channels)
    x, grad, residual = (tf.reshape(tf.constant(each), shape) for each in data[:3])
    gamma, beta, mean, variance = map(tf.constant, data[3:])
    training = case.operation != "inference"

    def forward():
        moving = ([], []) if training else (mean, variance)
        y, *rest = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=moving[0], variance=moving[1], epsilon=EPSILON, is_training=training
        )
        if case.fused == "add+relu":
            y = y + residual
        return (y if case.fused == "plain" else tf.nn.relu(y)), rest

    if case.operation != "backward":
        run = tf.function(lambda: forward()[0])
        return _prepared(case, run)
    y, rest = forward()

    @tf.function
    def backward():
        upstream = grad if case.fused == "plain" else tf.raw_ops.ReluGrad(gradients=grad, features=y)
        kept = {"reserve_space_1": rest[2], "reserve_space_2": rest[3], "reserve_space_3": rest[4]}
        return tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=upstream, x=x, scale=gamma, epsilon=EPSILON, is_training=True, **kept
        )[0]

    return _prepared(case, backward)


def _prepared(case, run):
    # A CPU tensor's numpy() shares its memory: it waits, and copies nothing.
    return Prepared(lambda: run().numpy(), lambda: np.asarray(run().numpy()).reshape(case.physical))
