"""Whether a forward pass is the second one of an activation checkpoint: it must not update statistics again.

For every layer that runs on torch, Keras' on that backend included.
"""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.core.equations import Moments

__all__ = ["counted_once", "inside_backward", "recomputing"]


def recomputing() -> bool:
    """Whether this forward pass runs inside a backward pass: activation checkpointing computes a layer again.

    The first pass has updated the statistics already. False while compiling: see `counted_once`.
    """
    return not torch.compiler.is_compiling() and inside_backward()


def counted_once(batch: Moments) -> Moments:
    """``batch``, with a count of 0, which updates nothing, where a compiled layer runs again under a checkpoint.

    A graph cannot ask at compile time whether it will be running inside a backward pass; this asks when it runs.
    """
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return batch
    return batch._replace(count=torch.where(_first_pass(batch.high), batch.count, 0))


def inside_backward() -> bool:
    """Whether autograd is at work on this thread."""
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


@torch.library.custom_op("batchnorm::first_pass", mutates_args=())
def _first_pass(anchor: Tensor) -> Tensor:
    # The anchor is there for its device, and because an operation without inputs would be folded to a constant.
    return anchor.new_full((), not inside_backward(), dtype=torch.bool)


@_first_pass.register_fake  # pyright: ignore[reportUnknownMemberType]
def _(anchor: Tensor) -> Tensor:
    return anchor.new_empty((), dtype=torch.bool)
