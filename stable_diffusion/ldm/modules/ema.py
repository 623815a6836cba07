"""Exponential moving average of a model's weights, kept as buffers under the published names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.util import UserError


class LitEma(nn.Module):
    """Shadow copy of every trainable parameter of a model.

    A buffer's name is the parameter's name without its dots, as published checkpoints hold it. The decay
    grows with the number of updates n, min(decay, (1 + n) / (10 + n)), so that averages forget the start.

    Args:
        model: whose parameters to average.
        decay: upper limit of the decay, in [0, 1].
        use_num_upates: grow the decay as above (the published spelling).
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.9999, use_num_upates: bool = True) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise UserError(f"EMA decay: expected a value in [0, 1], got {decay}")
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0 if use_num_upates else -1, dtype=torch.int))
        for name, parameter in self._tracked(model):
            self.register_buffer(name, parameter.detach().clone())

    @staticmethod
    def buffer_name(parameter_name: str) -> str:
        """Name of the buffer that averages the parameter of that name."""
        return parameter_name.replace(".", "")

    def _tracked(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                yield self.buffer_name(name), parameter

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Averages and parameters, in the same order."""
        names, parameters = zip(*self._tracked(model), strict=True)
        buffers = dict(self.named_buffers())
        return [buffers[name] for name in names], list(parameters)

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Move the averages one update toward `model`."""
        decay = self.decay.item()
        if self.num_updates >= 0:
            self.num_updates += 1
            n = self.num_updates.item()
            decay = min(decay, (1 + n) / (10 + n))
        averages, parameters = self._pairs(model)
        torch._foreach_lerp_(averages, parameters, 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` with the averages."""
        averages, parameters = self._pairs(model)
        torch._foreach_copy_(parameters, averages)

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Start the averages anew from the parameters of `model`."""
        averages, parameters = self._pairs(model)
        torch._foreach_copy_(averages, parameters)
        if self.num_updates >= 0:
            self.num_updates.zero_()

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Within the context `model` holds the averages; afterwards its own weights again."""
        _, parameters = self._pairs(model)
        kept = [p.detach().clone() for p in parameters]
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, kept)
