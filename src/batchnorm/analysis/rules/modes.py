"""Rules about a mode that the graph fixes: BN204 and BN205."""

from __future__ import annotations

from collections.abc import Iterable

from .finding import Hit, Subject

__all__ = ["batch_statistics", "training_mode_deployed"]


def training_mode_deployed(subject: Subject) -> Iterable[Hit]:
    """The graph fixes training mode: each batch is normalised by its own statistics."""
    for record in subject.records:
        if record.mode != "training":
            continue
        yield _deployed(record.name) if subject.deployed else _baked(record.name)


def _deployed(name: str) -> Hit:
    return Hit(
        level="error",
        layer=name,
        message=(
            "this graph was made for inference and normalises in training mode: each output depends on the other "
            "samples of its batch, and the stored statistics are not used."
        ),
        short="fixed to training mode",
        remedy="Export it in inference mode (model.eval() before the export), or batchnorm freeze MODEL -o OUT.",
        evidence={"mode": "training"},
    )


def _baked(name: str) -> Hit:
    return Hit(
        level="error",
        layer=name,
        message=(
            "the call of this layer fixes training=True. predict() and evaluate() override it; model(x) does not, and "
            "an exported graph does not: there each output depends on the other samples of its batch."
        ),
        short="a call fixes training=True",
        remedy="Call the layer without training=True, and leave the choice to whoever calls the model.",
        evidence={"mode": "training"},
    )


def batch_statistics(subject: Subject) -> Iterable[Hit]:
    """Mean or variance is no stored constant."""
    for record in subject.records:
        if record.mode == "batch-statistics":
            yield Hit(
                level="warning",
                layer=record.name,
                message=(
                    "its mean or variance is no stored constant but is computed from the input: the output depends on "
                    "the batch in inference, too."
                ),
                short="statistics computed from the batch",
                remedy=(
                    "If each batch was meant to be normalised by itself, nothing. Otherwise train with running "
                    "statistics (track_running_stats=True) and export in eval mode."
                ),
                evidence={"mode": "batch-statistics"},
            )
