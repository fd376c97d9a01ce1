"""What is timed: the matrix of shapes, layouts, types, operations, fusions and ways to get memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

RESNET = {
    f"ResNet-50, batch {n}": [
        (n, c, s, s) for c, s in ((64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7))
    ]
    for n in (1, 8, 32)
}
SHAPES: dict[str, list[tuple[int, ...]]] = RESNET | {
    "EfficientNet, odd sizes": [(8, 24, 75, 75), (8, 144, 75, 75), (8, 27, 75, 75), (8, 816, 19, 19), (8, 147, 19, 19)],
    "dense": [(32, 128), (1024, 512), (65536, 64)],
    "1-D": [(20, 6, 65536)],
    "3-D": [(2, 32, 32, 64, 64)],
    "few channels": [(32, 1, 112, 112), (32, 3, 112, 112), (32, 6, 112, 112)],
}
CROSSED = [(8, 64, 56, 56), (32, 64, 112, 112)]
"""Shapes of which every combination is timed: one that stays in the caches, one that does not."""
TABLE = [(32, 64, 112, 112), (32, 256, 56, 56), (32, 1024, 14, 14), (8, 64, 56, 56), (1, 64, 56, 56)]
"""Shapes that the goals are about."""
LAYOUTS = ("first", "last")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
OPERATIONS = ("forward", "backward", "inference")
FUSED = ("plain", "relu", "add+relu")
BUFFERS = ("out", "allocated")


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time.

    ``shape`` is (N, C, ...) whatever the layout; ``layout`` says where the channels lie in memory.
    ``buffers``: ``"out"`` writes into memory that the caller holds (the kernel alone), ``"allocated"`` returns a new
    array at every call.
    """

    shape: tuple[int, ...]
    layout: str = "first"
    dtype: str = "float32"
    operation: str = "forward"
    fused: str = "plain"
    buffers: str = "out"

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[1]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def physical(self) -> tuple[int, ...]:
        """The shape of a C-ordered array that lies like this case."""
        return self.shape if self.layout == "first" else (self.shape[0], *self.shape[2:], self.shape[1])

    @property
    def axis(self) -> int:
        """Where the channels are in ``physical``."""
        return 1 if self.layout == "first" else len(self.shape) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of one tensor."""
        return self.size * DTYPES[self.dtype]

    @property
    def passes(self) -> int:
        """Tensors that must be read or written at least once: 2 are one copy.

        Forward: x in, y out, and the residual in. Backward: gradient and x in, gradient of x out; with a residual
        it and its gradient as well, which are needed for the sign before the activation.
        """
        adds = self.fused == "add+relu"
        return 3 + 2 * adds if self.operation == "backward" else 2 + adds

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size} {self.layout} {self.dtype} {self.operation} {self.fused} {self.buffers}"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def from_dict(given: dict[str, object]) -> Case:
    """The inverse of `Case.as_dict`."""
    return Case(**given | {"shape": tuple(given["shape"])})  # type: ignore[arg-type]


def short() -> list[Case]:
    """Two minutes on a quiet machine: memory size, in the caches, and tiny."""
    big, near, tiny = (32, 256, 56, 56), (8, 64, 56, 56), (32, 128)
    found = [Case(shape, layout, operation=op) for shape in (big, near) for layout in LAYOUTS for op in OPERATIONS]
    found += [Case(near, fused="add+relu"), Case(near, dtype="bfloat16"), Case(tiny, "last")]
    found += [replace(case, buffers="allocated") for case in (Case(big), Case(near), Case(tiny, "last"))]
    return _sorted(found)


def table() -> list[Case]:
    """What the goals are about: `TABLE`, in both layouts, with what is fused and halved, kernel and with allocation."""
    found = [Case(shape, layout, operation=op) for shape in TABLE for layout in LAYOUTS for op in OPERATIONS]
    found += [Case(shape, layout, buffers="allocated") for shape in TABLE for layout in LAYOUTS]
    found += [Case(shape, layout, dtype="bfloat16") for shape in TABLE for layout in LAYOUTS]
    return _sorted([*found, *(Case(shape, fused="add+relu") for shape in TABLE), Case((32, 128), "last")])


def plain() -> list[Case]:
    """Every shape plain in float32, and with allocation."""
    found = [Case(shape, layout, operation=op) for shape, layout in _laid_out() for op in OPERATIONS]
    return _sorted(found + [Case(shape, layout, buffers="allocated") for shape, layout in _laid_out()])


def crossed() -> list[Case]:
    """Every combination of the `CROSSED` shapes."""
    return _sorted([case for shape in CROSSED for case in _combinations(shape)])


def long() -> list[Case]:
    """`table`, `plain` and `crossed`, in this order: what a limit of time cuts off is the least important."""
    return list(dict.fromkeys([*table(), *plain(), *crossed()]))


def everything() -> list[Case]:
    """Every combination of every shape: hours."""
    return _sorted([case for shape, _ in _laid_out() for case in _combinations(shape)])


SUBSETS = {"short": short, "table": table, "plain": plain, "crossed": crossed, "long": long, "all": everything}


def _sorted(cases: list[Case]) -> list[Case]:
    """Cases on the same data next to each other, once each: an engine's process then keeps it."""
    places: dict[object, int] = {}
    return sorted(dict.fromkeys(cases), key=lambda case: places.setdefault(data_of(case), len(places)))


def data_of(case: Case) -> tuple[object, ...]:
    """What the arrays of a case depend on."""
    return case.shape, case.layout, case.dtype


def _laid_out() -> Iterator[tuple[tuple[int, ...], str]]:
    for shape in (shape for shapes in SHAPES.values() for shape in shapes):
        # A dense layer's channels are adjacent, and there is no other way to lay them.
        for layout in LAYOUTS if len(shape) > 2 else ("last",):
            yield shape, layout


def _combinations(shape: tuple[int, ...]) -> Iterator[Case]:
    for layout in LAYOUTS if len(shape) > 2 else ("last",):
        for dtype in DTYPES:
            for operation in OPERATIONS:
                for fused in FUSED:
                    for buffers in BUFFERS:
                        yield Case(shape, layout, dtype, operation, fused, buffers)
