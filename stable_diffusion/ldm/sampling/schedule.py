"""Noise levels: the training schedule of the model and the sigmas that a sampler visits.

Two parametrisations meet here. Training (Ho et al. 2020) counts timesteps t = 0..999 with
x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise; samplers (Karras et al. 2022) count sigma with x = x_0 + sigma
noise, sigma_t = sqrt((1 - a_t) / a_t), a_t the cumulative product of alphas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.util import UserError


def make_beta_schedule(timesteps: int, linear_start: float, linear_end: float) -> Tensor:
    """Betas [timesteps], float64: linear in their square root, as Stable Diffusion was trained."""
    return torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=torch.float64) ** 2


def model_sigmas(alphas_cumprod: Tensor) -> Tensor:
    """Sigma of every training timestep, [timesteps], rising."""
    return ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5


def append_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def get_sigmas(sigmas: Tensor, n: int) -> Tensor:
    """The model's own schedule for `n` steps: evenly spaced in t, falling, and a final 0. [n + 1].

    Args:
        sigmas: of `model_sigmas`.
    """
    t = torch.linspace(len(sigmas) - 1, 0, n, device=sigmas.device)
    return append_zero(t_to_sigma(sigmas, t))


def t_to_sigma(sigmas: Tensor, t: Tensor) -> Tensor:
    """Sigma at fractional timesteps, interpolated in log sigma; the shape of `t`."""
    low, high, weight = t.floor().long(), t.ceil().long(), t.frac()
    log_sigmas = sigmas.log()
    return ((1 - weight) * log_sigmas[low] + weight * log_sigmas[high]).exp()


def sigma_to_t(sigmas: Tensor, sigma: Tensor) -> Tensor:
    """Fractional timestep of each `sigma` [B], the inverse of `t_to_sigma`; clamped to the model's range."""
    log_sigmas, log_sigma = sigmas.log(), sigma.log()
    low = torch.searchsorted(log_sigmas, log_sigma, right=True).sub(1).clamp(0, len(sigmas) - 2)
    below, above = log_sigmas[low], log_sigmas[low + 1]
    weight = ((below - log_sigma) / (below - above)).clamp(0, 1)
    return (1 - weight) * low + weight * (low + 1)


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Schedule of Karras et al. 2022, equation 5, falling, and a final 0. [n + 1]."""
    ramp = torch.linspace(0, 1, n)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return append_zero((high + ramp * (low - high)) ** rho)


def exponential_sigmas(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in log sigma, falling, and a final 0. [n + 1]."""
    high, low = torch.tensor([sigma_max, sigma_min], dtype=torch.float64).log().tolist()
    return append_zero(torch.linspace(high, low, n).exp())


def schedule_sigmas(name: str, sigmas: Tensor, n: int) -> Tensor:
    """The `n`-step schedule of that name (``model``, ``karras``, ``exponential``), [n + 1], on CPU or GPU.

    Args:
        sigmas: of `model_sigmas`; their ends are the range of the other schedules.
    """
    if name == "model":
        return get_sigmas(sigmas, n)
    rules = {"karras": karras_sigmas, "exponential": exponential_sigmas}
    if name not in rules:
        raise UserError(f"schedule: expected model, {', '.join(rules)}, got {name!r}")
    return rules[name](n, sigmas[0].item(), sigmas[-1].item()).to(sigmas.device)
