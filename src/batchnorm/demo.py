"""The main job on the model of the original question, trained on the spot by the embedded engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from batchnorm.api.explaining import explain
from batchnorm.api.results import Explanation, Result

__all__ = ["Demo", "demo"]

QUESTION = (
    "I feed [1, 5] to a Keras BatchNormalization layer and expect [-1, 1]. I get [0.795, 4.175]. "
    "How are the output values calculated?"
)


@dataclass(frozen=True, slots=True, eq=False)
class Demo(Result):
    """The question, how its model was trained here, and the answer for this model."""

    schema: ClassVar[str] = "batchnorm/demo/1"
    question: str
    steps: int
    losses: tuple[float, ...]
    answer: Explanation

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        return {
            "schema": self.schema,
            "question": self.question,
            "steps": self.steps,
            "losses": list(self.losses),
            "answer": self.answer.to_document(),
        }


def demo(seed: int = 0) -> Demo:
    """Train the question's model (10 random samples of shape (1, 2, 1), no beta, 10 steps) and explain its output."""
    from batchnorm.layers.fitting import SGD
    from batchnorm.layers.numpy import BatchNormalization

    rng = np.random.default_rng(seed)
    x, y = (rng.random((10, 1, 2, 1), dtype=np.float32) for _ in range(2))
    layer = BatchNormalization(center=False)
    losses = layer.fit(x, y, epochs=10, optimizer=SGD(0.01))
    answer = explain(layer, x=[1, 5], expect=[-1, 1])
    return Demo(QUESTION, 10, tuple(float(loss) for loss in losses), answer)
