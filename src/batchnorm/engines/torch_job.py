"""The ranks of a PyTorch training job, as a recalibration needs them."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchnorm.errors import ArgumentError, require

__all__ = ["gathering"]


def gathering(group: Any) -> Callable[[Any], list[Any]]:
    """What hands an object of every rank of a process group to every rank, in the order of the ranks.

    Raises
    ------
    ArgumentError
        No process group was initialised, or this process is not in it.
    """
    dist: Any = require("torch.distributed", "torch", "Recalibrating over a process group")
    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(
            "recalibrate: process_group needs a job: call torch.distributed.init_process_group in every process first."
        )
    if dist.get_rank(group) < 0:
        raise ArgumentError("recalibrate: this process is no rank of the process_group that was given.")

    def gather(value: Any) -> list[Any]:
        everywhere: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(everywhere, value, group=group)
        return everywhere

    return gather
