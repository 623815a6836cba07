"""Published names of weights that follow a rule: those of the noise schedule and of the moving average."""

from __future__ import annotations

import torch
from torch import Tensor

# The noise schedule follows from the configuration, so a model computes it and a file may or may not have it.
SCHEDULE = frozenset(
    """betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
    log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
    posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2""".split()
)
EMA_SETTINGS = frozenset({"model_ema.decay", "model_ema.num_updates"})


def ema_name(name: str) -> str:
    """Return under which name a file keeps the EMA copy of ``model.…``: published names lost their dots."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the type of a weight in a file of that precision; single numbers and the schedule keep it."""
    if dtype is None or not tensor.is_floating_point() or tensor.ndim == 0 or name in SCHEDULE:
        return tensor.dtype
    return dtype
