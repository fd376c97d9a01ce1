"""One arena for the sessions of onnxruntime that run in turn: what one leaves in the caches the next one writes to.

With an arena for each, the pieces of a graph cost 8 % more (benchmarks/recalibration_cost.py). What the arena has grown
to is given back when the sessions have ended.
"""

# pyright: reportUnknownMemberType=false
# onnx' messages are generated, and have no types.

from __future__ import annotations

import contextlib
import functools
from typing import Any

import numpy as np

__all__ = ["give_back", "shared"]

SHARED = "session.use_env_allocators"
SHRINK = "memory.enable_memory_arena_shrinkage"
ARENA = {"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
"""Extended by what is asked for, not by powers of two, so that all of it can be given back."""


def shared(ort: Any, options: Any) -> Any:
    """Options of a session, which is to allocate from the arena."""
    _registered(ort)
    options.add_session_config_entry(SHARED, "1")
    return options


def give_back(ort: Any, onnx: Any) -> None:
    """Return to the system what no session uses any more."""
    run = ort.RunOptions()
    run.add_run_config_entry(SHRINK, "cpu:0")
    # An array without elements: one that the arena allocates would keep a part of it.
    _idle(ort, onnx).run(None, {"x": np.zeros(0, np.float32)}, run)


@functools.cache
def _registered(ort: Any) -> None:
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with contextlib.suppress(RuntimeError):  # the process has one already
        ort.create_and_register_allocator(info, ort.OrtArenaCfg(ARENA))


@functools.cache
def _idle(ort: Any, onnx: Any) -> Any:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = ([helper.make_tensor_value_info(name, kind, [None])] for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "idle", *ends)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 14)])
    options = shared(ort, ort.SessionOptions())
    options.intra_op_num_threads = 1  # it stays open, and would keep a thread for each core
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
