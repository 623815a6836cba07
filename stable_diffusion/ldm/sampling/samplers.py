"""Samplers: from noise to a latent, by a denoiser that knows nothing of guidance or text.

Euler ancestral, the default, is ours; every other sampler comes from `k_diffusion`, imported when asked for.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.util import UserError

Denoiser = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[dict[str, Any]], None]

DEFAULT = "euler_ancestral"


@torch.no_grad()
def sample_euler_ancestral(
    denoise: Denoiser,
    z: Tensor,
    sigmas: Tensor,
    *,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
    eta: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Euler steps that go further down than the next sigma and add noise to come back up to it.

    Args:
        denoise: (z, sigma [B]) -> expected x_0.
        z: start, [B, 4, h, w], noise of standard deviation `sigmas[0]`.
        sigmas: falling noise levels [n + 1], the last 0.
        noise: draws standard normal noise like its argument, once a step except the last.
        eta: share of ancestral noise, 0 (none, plain Euler) to 1.
        callback: called before each step with i, sigma, x and denoised.

    Returns:
        [B, 4, h, w].

    Source: Karras et al. 2022, algorithm 2 without its second-order correction; the split of a step as in
    Song et al. 2021 (DDIM), equation 16.
    """
    for i, (sigma, target) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = denoise(z, sigma.expand(len(z)))
        if callback is not None:
            callback({"i": i, "sigma": sigma, "x": z, "denoised": denoised})
        up = eta * (target**2 * (sigma**2 - target**2) / sigma**2).sqrt()
        up = torch.minimum(target, up)
        down = (target**2 - up**2).sqrt()
        z = z + (z - denoised) / sigma * (down - sigma)
        if target > 0:
            z = z + noise(z) * up
    return z


def sampler_names() -> list[str]:
    """Names that `sample` takes: those of k_diffusion's ``sample_*`` functions, without the prefix."""
    sampling = _k_diffusion()
    names = {name.removeprefix("sample_") for name in vars(sampling) if name.startswith("sample_")}
    return sorted(names | {DEFAULT})


def has_k_diffusion() -> bool:
    """Whether the samplers beside the default are installed; imports none of it."""
    names = ("k_diffusion", "scipy", "torchdiffeq", "torchsde", "torchvision")
    return all(importlib.util.find_spec(name) for name in names)


def import_without_package(name: str) -> Any:
    """Import a submodule, such as ``k_diffusion.sampling``, without running the ``__init__`` of its package.

    For packages whose other parts need what is not installed. The package is known to the import system by a
    name of its own, so that a plain import of it stays what it is.

    Raises:
        ModuleNotFoundError: the package, the submodule, or what the submodule imports is missing.
    """
    package, _, submodule = name.partition(".")
    alias = f"_{package}_without_init"
    if alias not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        module = types.ModuleType(alias)
        module.__path__ = list(spec.submodule_search_locations)
        sys.modules[alias] = module
    return importlib.import_module(f"{alias}.{submodule}")


def _k_diffusion() -> Any:
    try:
        return import_without_package("k_diffusion.sampling")
    except ModuleNotFoundError as error:
        raise UserError(
            f"samplers other than {DEFAULT} need k-diffusion: pip install -e '.[samplers]', then "
            "pip install --no-deps k-diffusion==0.1.1.post1"
        ) from error


def sample(
    name: str,
    denoise: Denoiser,
    z: Tensor,
    sigmas: Tensor,
    *,
    noise: Callable[[Tensor], Tensor] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Run the sampler of that name.

    Args:
        name: of `sampler_names`.
        denoise, z, sigmas, callback: as for `sample_euler_ancestral`.
        noise: draws standard normal noise like its argument; None leaves it to the sampler, which draws from
            torch's global generator.

    Raises:
        UserError: an unknown name.
    """
    if name == DEFAULT:
        return sample_euler_ancestral(denoise, z, sigmas, noise=noise or torch.randn_like, callback=callback)
    if name not in sampler_names():
        raise UserError(f"sampler: expected one of {', '.join(sampler_names())}, got {name!r}")
    function = getattr(_k_diffusion(), f"sample_{name}")
    arguments: dict[str, Any] = {"callback": callback, "disable": True}
    known = inspect.signature(function).parameters
    if "sigmas" in known:
        arguments["sigmas"] = sigmas
    else:  # DPM-Solver's fast and adaptive forms make a schedule of their own between the ends of ours
        arguments |= {"sigma_min": sigmas[-2].item(), "sigma_max": sigmas[0].item()}
    if noise is not None and "noise_sampler" in known:
        arguments["noise_sampler"] = lambda sigma, next_sigma: noise(z)
    if "n" in known:
        arguments["n"] = len(sigmas) - 1
    with warnings.catch_warnings():  # torchsde warns of rounding at the ends of its interval
        warnings.simplefilter("ignore")
        return function(denoise, z, **arguments)
