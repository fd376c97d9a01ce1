"""What a loaded TorchScript module fixes of its batch normalizations: epsilon, momentum and mode, from its graph."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from batchnorm.core.record import LayerRecord, Mode

__all__ = ["Settings", "settings_of"]

OPERATOR = "aten::batch_norm"
TRAINING, MOMENTUM, EPSILON = 5, 6, 7  # positions among the operator's inputs


@dataclass(frozen=True, slots=True)
class Settings:
    """The constants of one call; None where the graph computes them."""

    epsilon: float | None
    momentum: float | None
    mode: Mode
    cumulative: bool = False

    def applied(self, record: LayerRecord) -> LayerRecord:
        """The record, knowing them."""
        known = {} if self.epsilon is None else {"epsilon": self.epsilon, "epsilon_source": "file"}
        if self.momentum is None and self.cumulative:
            known |= {"averaging": "cumulative"}
        if self.momentum is not None:
            # Without the noise of the subtraction; 0 is what becomes of momentum=None.
            cumulative = self.momentum == 0
            known |= {
                "momentum": self.momentum,
                "decay": None if cumulative else round(1 - self.momentum, 12),
                "averaging": "cumulative" if cumulative else "exponential",
            }
        changed = record.replace(mode=self.mode, **known)
        return changed if record.updates is None else changed.with_updates(record.updates, "num_batches_tracked")


def settings_of(module: Any) -> dict[str, Settings]:
    """Name of each submodule with running statistics -> what its own graph calls the operator with."""
    found: dict[str, Settings] = {}
    for name, inner in module.named_modules():
        if not {"running_mean", "running_var"} <= {key for key, _ in inner.named_buffers(recurse=False)}:
            continue
        with contextlib.suppress(RuntimeError):  # a module without a forward of its own
            graph = inner.inlined_graph  # kept: its nodes die with it
            nodes = graph.findAllNodes(OPERATOR, True)
            if nodes:
                # A script computes the factor of momentum=None, and keeps the None as a constant of the module.
                cumulative = getattr(inner, "momentum", 0) is None
                found[name] = _settings(list(nodes[0].inputs()), cumulative)
    return found


def _settings(inputs: list[Any], cumulative: bool) -> Settings:
    training = inputs[TRAINING].toIValue()
    mode: Mode = "by-call" if training is None else ("training" if training else "inference")
    momentum, epsilon = (inputs[at].toIValue() for at in (MOMENTUM, EPSILON))
    return Settings(
        epsilon=epsilon if isinstance(epsilon, float) else None,
        momentum=momentum if isinstance(momentum, float) else None,
        mode=mode,
        cumulative=cumulative,
    )
