"""What the names in a state dict suggest of its epsilon: a sentence for a person, and a number only when asked for.

A state dict holds no epsilon. Some architectures are known by the names of their layers and always, or mostly, built
with an epsilon that is not PyTorch's 1e-5; the wrong one moves outputs most where variances are small.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["epsilon_hint", "hinted_epsilon"]

# One name that the architecture has and others do not, and what its own code builds its layers with.
KNOWN = (
    (r"(^|\.)model\.\d+\.(cv[12]\.)?bn\.running_mean$", "a YOLO of ultralytics, built with epsilon 0.001", 1e-3),
    (r"(^|\.)Mixed_5b\.branch1x1\.bn\.running_mean$", "torchvision's Inception v3, built with epsilon 0.001", 1e-3),
    (r"(^|\.)inception3a\.branch1\.bn\.running_mean$", "torchvision's GoogLeNet, built with epsilon 0.001", 1e-3),
    (
        r"(^|\.)blocks\.\d+\.\d+\.(bn3|bn2)\.running_mean$",
        "a mobile network of timm (EfficientNet and its kin): its tf_ variants are built with epsilon 0.001, the "
        "others with 0.00001",
        None,
    ),
    (r"(^|\.)_blocks\.\d+\._bn1\.running_mean$", "efficientnet_pytorch, built with epsilon 0.001", 1e-3),
    (r"(^|\.)conv1_BN\.running_mean$", "CREPE, ported from Keras and built with epsilon 0.001", 1e-3),
)


def epsilon_hint(names: Iterable[str]) -> str | None:
    """A sentence on the epsilon that the names of a state dict suggest; None where they suggest none.

    Parameters
    ----------
    names : iterable of str
        Names of arrays.
    """
    found = _architecture(names)
    if found is None:
        return None
    spelled = "a number" if found[2] is None else "hint"
    return f"The names are those of {found[1]}; if that is what this is, take it with --eps {spelled}"


def hinted_epsilon(names: Iterable[str]) -> float | None:
    """The epsilon itself, for a user who asked for it; None where the names suggest none, or one of two."""
    found = _architecture(names)
    return None if found is None else found[2]


def _architecture(names: Iterable[str]) -> tuple[str, str, float | None] | None:
    for name in names:
        if name.endswith("running_mean"):
            for known in KNOWN:
                if re.search(known[0], name):
                    return known
    return None
