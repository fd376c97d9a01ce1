"""What every layer here adds to torch's: the forward pass, the running statistics, freezing, and their checks."""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.core.training import Rule
from batchnorm.errors import ArgumentError

from . import functional, quick
from .arguments import CHECKS, check_configuration
from .function import How
from .recompute import recomputing
from .state import DDOF, Buffers

__all__ = ["Layer", "Statistics"]

Statistics = Literal["moving", "debiased", "cumulative"]
HALF = (torch.float16, torch.bfloat16)
FLOAT_BUFFERS = ("running_mean", "running_var", "remaining")


class Layer(_BatchNorm):
    """Common part of the layers; the classes with a rank are `BatchNorm1d` and its siblings.

    Attributes
    ----------
    statistics : {"moving", "debiased", "cumulative"}
        How the running statistics follow the batches.
    guard : bool
        Whether a NaN or an infinity in a batch leaves that channel's running statistics alone.
    skipped_updates : Tensor or None
        Updates left out by the guard, per channel; not part of the state dict. None without a guard.
    remaining : Tensor or None
        Share of the initial value that was taken out, per channel; in the state dict of a debiased layer only.
    virtual_batch_size : int or None
        Batches are normalised in parts of this many samples.
    frozen : bool
        Set by `freeze`: inference and no update, whatever ``train()`` says.
    """

    ranks: tuple[int, ...] = ()
    statistics: Statistics
    guard: bool
    virtual_batch_size: int | None
    frozen: bool
    activation: str | None
    skipped_updates: Tensor | None
    remaining: Tensor | None
    joins: bool = False
    """Whether other processes' batches can belong to this one's."""

    def _configure(
        self, statistics: Statistics = "moving", guard: bool = True, virtual_batch_size: int | None = None
    ) -> None:
        """Check the arguments, and make of torch's layer one of ours."""
        self.statistics, self.guard = statistics, guard
        self.activation = None
        self.frozen = False
        self._asked = self.training
        self._thawed: tuple[str, ...] = ()
        if statistics == "cumulative":
            self.momentum = None
        self.virtual_batch_size = check_configuration(
            type(self).__name__, self.eps, self.momentum, statistics, virtual_batch_size
        )
        self.register_buffer("skipped_updates", None, persistent=False)
        self.register_buffer("remaining", None)
        mean = self.running_mean
        if mean is None:
            return
        _keep_wide(self)
        if guard:
            skipped = torch.zeros(self.num_features, dtype=torch.int64, device=mean.device)
            self.register_buffer("skipped_updates", skipped, persistent=False)
        if statistics == "debiased":
            self.register_buffer("remaining", torch.ones_like(self.running_mean))  # type: ignore[arg-type]
            self._set_remaining()

    def _set_remaining(self) -> None:
        """Weights from elsewhere hold no initial value to take out; a fresh layer holds nothing else."""
        mean, variance, remaining = self.running_mean, self.running_var, self.remaining
        tracked = self.num_batches_tracked
        if mean is None or variance is None or remaining is None or mean.is_meta:
            return
        untouched = bool((mean == 0).all() and (variance == 1).all()) and (tracked is None or int(tracked) == 0)
        remaining.fill_(1.0 if untouched else 0.0)

    @property
    def rule(self) -> Rule:
        """How the running statistics follow the batches, in the words of the core."""
        plain_mean = self.momentum is None
        return Rule(
            epsilon=self.eps,
            decay=1.0 if self.momentum is None else 1 - self.momentum,
            ddof=DDOF,
            statistics="cumulative" if plain_mean else self.statistics,
            guard=self.guard,
        )

    def reset_running_stats(self) -> None:
        """Set the running statistics to 0 and 1 and the counters to 0."""
        super().reset_running_stats()
        for name, value in (("skipped_updates", 0), ("remaining", 1)):
            buffer = self._buffers.get(name)
            if buffer is not None:
                buffer.fill_(value)

    def __setattr__(self, name: str, value: Any) -> None:
        check = CHECKS.get(name)
        super().__setattr__(name, value if check is None else check(type(self).__name__, name, value))

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise ``input``; ``mask`` says which elements count in the statistics."""
        return quick.call(self, input, None) if mask is None else self._normalize(input, mask, None)

    def _normalize(self, x: Tensor, mask: Tensor | None, residual: Tensor | None) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return self._as_one_node(x, mask=mask, residual=residual)
        self._check(x, residual)
        training = self.training and not self.frozen
        mean, variance = self.running_mean, self.running_var
        if not training and mean is not None and variance is not None:
            return functional.infer(x, mean, variance, self.weight, self.bias, self.eps, residual, self.activation)
        aligned = None if mask is None else functional.aligned_mask(mask, x, type(self).__name__)
        size = self.virtual_batch_size
        if size is None or x.shape[0] <= size:
            return self._train(x, aligned, residual, training)
        self._check_last_part(x, size)
        parts = zip(
            x.split(size),
            [None] * -(-x.shape[0] // size) if aligned is None else aligned.split(size),
            [None] * -(-x.shape[0] // size) if residual is None else residual.split(size),
            strict=True,
        )
        return torch.cat([self._train(*part, training) for part in parts])

    def _as_one_node(self, x: Any, **given: Any) -> Any:
        # torch.fx keeps torch's own layers whole by where they are defined; what reads its graphs looks for layers.
        given = {name: value for name, value in given.items() if value is not None}
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), given)

    def _train(self, x: Tensor, mask: Tensor | None, residual: Tensor | None, training: bool) -> Tensor:
        group = self._group() if training else None
        if group is None:
            if x.numel() == 0:
                return functional.untouched(x, self.weight, self.bias, residual, self.activation)
            functional.check_spread(x, type(self).__name__)
        mean, variance = self.running_mean, self.running_var
        fallback = None if mean is None or variance is None else (mean, variance)
        how = How(self.eps, self.activation, group)
        update = training and self.track_running_stats and fallback is not None and not recomputing()
        buffers = self._statistics_buffers(*fallback) if update and fallback is not None else None
        given: Any = {"mask": mask, "fallback": fallback, "residual": residual}
        return functional.train(x, self.weight, self.bias, how, **given, buffers=buffers, momentum=self.momentum)

    def _statistics_buffers(self, mean: Tensor, variance: Tensor) -> Buffers:
        return Buffers(mean, variance, self.num_batches_tracked, self.skipped_updates, self.remaining)

    def _group(self) -> Any:
        """The processes to synchronise with; None is none."""
        return None

    def _check(self, x: Tensor, residual: Tensor | None) -> None:
        who = type(self).__name__
        functional.check_input(x, who)
        if x.dim() not in self.ranks:
            wanted = " or ".join(f"{rank}D" for rank in self.ranks)
            raise ArgumentError(
                f"{who}: expected {wanted} input (got {x.dim()}D input); its shape is {tuple(x.shape)}."
            )
        # torch.jit.trace (the ONNX export before 2.5) would take a comparison of lengths for data, and warn.
        if not torch.jit.is_tracing() and x.shape[1] != self.num_features:  # pyright: ignore[reportPrivateImportUsage]
            raise functional.ChannelMismatch(
                f"{who}: the input must have num_features={self.num_features} channels on axis 1; "
                f"got {x.shape[1]} in an input of shape {tuple(x.shape)}."
            )
        if residual is not None and residual.shape != x.shape:
            raise ArgumentError(
                f"{who}: residual must have the shape of the input, {tuple(x.shape)}; got {tuple(residual.shape)}."
            )

    def _check_last_part(self, x: Tensor, size: int) -> None:
        # Before any part has updated anything; the last one is the smallest.
        last = (x.shape[0] - 1) % size + 1
        if x.numel() == x.shape[0] * x.shape[1] and last == 1:
            raise ArgumentError(
                f"{type(self).__name__}: Expected more than 1 value per channel when training, but "
                f"virtual_batch_size={size} leaves a last part of 1 sample in an input of shape {tuple(x.shape)}. Use "
                "a batch that it divides (drop_last=True in the loader), or another size."
            )

    # -- freezing -----------------------------------------------------------------------------------------------------

    def freeze(self, parameters: bool = True) -> None:
        """Normalise with the running statistics and leave them alone until `unfreeze`, whatever ``train()`` says.

        ``parameters`` stops gamma and beta from being trained as well.
        """
        if self.running_mean is None:
            raise ArgumentError(
                f"{type(self).__name__}: freeze needs running statistics to normalise with; this layer has "
                "track_running_stats=False. Build it with track_running_stats=True."
            )
        if not self.frozen:
            self._asked = self.training
        self.frozen = True
        super().train(False)
        if parameters:
            trained = [name for name, value in self.named_parameters(recurse=False) if value.requires_grad]
            self._thawed += tuple(trained)
            for name in trained:
                self.get_parameter(name).requires_grad_(False)

    def unfreeze(self) -> None:
        """Undo `freeze`: the mode is what ``train()`` or ``eval()`` last asked for; gamma and beta are as before."""
        self.frozen = False
        super().train(self._asked)
        for name in self._thawed:
            self.get_parameter(name).requires_grad_(True)
        self._thawed = ()

    def train(self, mode: bool = True) -> Any:
        """Set training or inference; a frozen layer stays in inference and remembers what was asked."""
        self._asked = mode
        return super().train(mode and not self.frozen)

    # -- torch's machinery --------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # half(), bfloat16() and to(dtype) come through here; a 16-bit moving average stalls (bfloat16: at 7.09 of 10).
        self.__dict__.pop("_known", None)
        statistics = [self._buffers.get(name) for name in FLOAT_BUFFERS]

        def kept_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype in HALF and any(tensor is each for each in statistics):
                return tensor.to(device=moved.device, dtype=torch.float32)
            return moved

        return super()._apply(kept_wide, recurse)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        _keep_wide(self)
        if prefix + "running_mean" not in state_dict:
            return
        if self.skipped_updates is not None:
            self.skipped_updates.zero_()
        key = prefix + "remaining"
        if self.remaining is not None and key not in state_dict:
            self._set_remaining()
            missing_keys[:] = [missing for missing in missing_keys if missing != key]

    def extra_repr(self) -> str:
        """torch's, and what differs from its defaults."""
        ours = {
            "statistics": (self.statistics, "moving"),
            "guard": (self.guard, True),
            "virtual_batch_size": (self.virtual_batch_size, None),
            "activation": (self.activation, None),
            "frozen": (self.frozen, False),
        }
        return ", ".join(
            [super().extra_repr(), *(f"{name}={value}" for name, (value, usual) in ours.items() if value != usual)]
        )


def _keep_wide(layer: Layer) -> None:
    mean = layer.running_mean
    for name in FLOAT_BUFFERS:
        buffer = layer._buffers.get(name)  # pyright: ignore[reportPrivateUsage]
        if buffer is not None and buffer.dtype in HALF:
            layer._buffers[name] = buffer.to(torch.float32)  # pyright: ignore[reportPrivateUsage]
    for name in ("skipped_updates", "remaining"):
        buffer = layer._buffers.get(name)  # pyright: ignore[reportPrivateUsage]
        # A state dict of torch's that is assigned to a layer on the meta device does not fill what is ours.
        if buffer is not None and buffer.is_meta and mean is not None and not mean.is_meta:
            layer._buffers[name] = torch.zeros_like(buffer, device=mean.device)  # pyright: ignore[reportPrivateUsage]
