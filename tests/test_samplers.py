"""ldm.sampling: our Euler ancestral and schedules against k_diffusion's, and both against closed forms."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.sampling.samplers import (
    DEFAULT,
    import_without_package,
    sample,
    sample_euler_ancestral,
    sampler_names,
)
from ldm.sampling.schedule import (
    exponential_sigmas,
    get_sigmas,
    karras_sigmas,
    make_beta_schedule,
    model_sigmas,
    schedule_sigmas,
    sigma_to_t,
    t_to_sigma,
)
from ldm.util import UserError

MEAN, DEVIATION = 0.7, 0.5  # of the Gaussian data below
NAMES = (
    "dpm_2 dpm_2_ancestral dpm_adaptive dpm_fast dpmpp_2m dpmpp_2m_sde dpmpp_2s_ancestral dpmpp_3m_sde "
    "dpmpp_sde euler euler_ancestral heun lms"
).split()
DETERMINISTIC = {"dpm_2", "dpm_adaptive", "dpm_fast", "dpmpp_2m", "euler", "heun", "lms"}


@pytest.fixture(scope="module")
def sigmas() -> Tensor:
    """Sigmas of Stable Diffusion's 1000 timesteps."""
    return model_sigmas((1 - make_beta_schedule(1000, 0.00085, 0.012)).cumprod(0).float())


def gaussian(z: Tensor, sigma: Tensor) -> Tensor:
    """The perfect denoiser of data that are normal with `MEAN` and `DEVIATION`, independent in each value."""
    noise, data = sigma[:, None, None, None] ** 2, DEVIATION**2
    return (data * z + noise * MEAN) / (data + noise)


def gaussian_flow(z: Tensor, sigma: Tensor | float, end: Tensor | float = 0.0) -> Tensor:
    """Where the probability-flow ODE of that data leads a point of noise level `sigma`."""
    return MEAN + (z - MEAN) * ((DEVIATION**2 + end**2) / (DEVIATION**2 + sigma**2)) ** 0.5


def texture(z: Tensor, sigma: Tensor) -> Tensor:
    """Some denoiser that is not linear and depends on sigma."""
    return torch.tanh(z.roll(1, -1) / (1 + sigma[:, None, None, None]))


# --- The same numbers as k_diffusion ------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_ancestral_equals_k_diffusion(sigmas: Tensor, steps: int, eta: float) -> None:
    sampling = import_without_package("k_diffusion.sampling")
    levels = get_sigmas(sigmas, steps)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(steps)) * levels[0]
    seen: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    torch.manual_seed(5)
    ours = sample_euler_ancestral(texture, start, levels, eta=eta, callback=seen[0].append)
    after_ours = torch.rand(())
    torch.manual_seed(5)
    theirs = sampling.sample_euler_ancestral(
        texture, start, levels, eta=eta, callback=seen[1].append, disable=True
    )
    after_theirs = torch.rand(())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert after_ours == after_theirs, "the generators were asked for different amounts of noise"
    assert len(seen[0]) == len(seen[1]) == steps
    for one, other in zip(*seen, strict=True):
        assert one["i"] == other["i"] and one["sigma"] == other["sigma"]
        torch.testing.assert_close(one["x"], other["x"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one["denoised"], other["denoised"], rtol=1e-6, atol=1e-6)


def test_noise_comes_from_where_it_is_asked(sigmas: Tensor) -> None:
    """A sampler of one's own: one call a step except the last, and the global generator stays as it was."""
    levels = get_sigmas(sigmas, 4)
    generator = torch.Generator().manual_seed(1)
    calls = []

    def noise(like: Tensor) -> Tensor:
        calls.append(like.shape)
        return torch.randn(like.shape, generator=generator)

    torch.manual_seed(2)
    z = sample_euler_ancestral(texture, torch.ones(1, 4, 2, 2), levels, noise=noise)
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(2))
    assert calls == [z.shape] * 3


@pytest.mark.parametrize("n", [1, 2, 5, 20, 100, 1000])
def test_schedules_equal_k_diffusion(sigmas: Tensor, n: int) -> None:
    external = import_without_package("k_diffusion.external")
    sampling = import_without_package("k_diffusion.sampling")
    low, high = sigmas[0].item(), sigmas[-1].item()
    pairs = [
        (get_sigmas(sigmas, n), external.DiscreteSchedule(sigmas, quantize=False).get_sigmas(n)),
        (karras_sigmas(n, low, high), sampling.get_sigmas_karras(n, low, high)),
        (exponential_sigmas(n, low, high), sampling.get_sigmas_exponential(n, low, high)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_sigma_to_t_equals_k_diffusion(sigmas: Tensor) -> None:
    external = import_without_package("k_diffusion.external")
    theirs = external.DiscreteSchedule(sigmas, quantize=False)
    t = torch.linspace(0, 999, 400)
    inside = t_to_sigma(sigmas, t)
    outside = torch.tensor([1e-4, 0.0291, 14.7, 80.0])
    for sigma in (sigmas, inside, outside):
        torch.testing.assert_close(sigma_to_t(sigmas, sigma), theirs.sigma_to_t(sigma), rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(inside, theirs.t_to_sigma(t), rtol=1e-6, atol=0)


# --- Closed forms -------------------------------------------------------------------------------------------


def test_schedule_of_the_model(sigmas: Tensor) -> None:
    betas = make_beta_schedule(1000, 0.00085, 0.012)
    assert betas[0].item() == pytest.approx(0.00085) and betas[-1].item() == pytest.approx(0.012)
    roots = betas.sqrt()
    torch.testing.assert_close(roots.diff(), (roots[1] - roots[0]).expand(999))
    assert torch.all(sigmas.diff() > 0)
    torch.testing.assert_close(get_sigmas(sigmas, 1000), torch.cat([sigmas.flip(0), torch.zeros(1)]))
    torch.testing.assert_close(sigma_to_t(sigmas, sigmas), torch.arange(1000.0), rtol=0, atol=1e-2)
    half = (sigmas[41] * sigmas[42]).sqrt()[None]
    torch.testing.assert_close(sigma_to_t(sigmas, half), torch.tensor([41.5]), rtol=0, atol=1e-2)
    assert sigma_to_t(sigmas, torch.tensor([1e-5, 1e5])).tolist() == [0, 999]


@pytest.mark.parametrize("name", ["model", "karras", "exponential"])
def test_schedules_fall_from_end_to_end(sigmas: Tensor, name: str) -> None:
    levels = schedule_sigmas(name, sigmas, 12)
    assert len(levels) == 13 and levels[-1] == 0 and torch.all(levels.diff() < 0)
    torch.testing.assert_close(levels[0], sigmas[-1])
    torch.testing.assert_close(levels[-2], sigmas[0])
    if name == "exponential":
        ratios = levels[1:-1] / levels[:-2]
        torch.testing.assert_close(ratios, ratios[:1].expand(11))
    if name == "karras":
        steps = (levels[:-1] ** (1 / 7)).diff()
        torch.testing.assert_close(steps, steps[:1].expand(11), rtol=1e-4, atol=0)


def test_unknown_schedule_is_one_line(sigmas: Tensor) -> None:
    with pytest.raises(UserError, match="expected model, karras, exponential, got 'linear'"):
        schedule_sigmas("linear", sigmas, 5)


def test_euler_converges_to_the_exact_flow(sigmas: Tensor) -> None:
    """Without ancestral noise the error of Euler's method halves when the steps are doubled."""
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 14.6
    errors = []
    for steps in (100, 200, 400):
        levels = get_sigmas(sigmas.double(), steps)
        end = sample_euler_ancestral(gaussian, start, levels, eta=0.0)
        errors.append((end - gaussian_flow(start, levels[0])).abs().max().item())
    assert errors[-1] < 0.02
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 1.7 < coarse / fine < 2.3


def test_ancestral_noise_keeps_the_distribution(sigmas: Tensor) -> None:
    levels = get_sigmas(sigmas, 200)
    torch.manual_seed(0)
    end = sample_euler_ancestral(gaussian, torch.randn(16, 4, 32, 32) * levels[0], levels)
    assert end.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert end.std().item() == pytest.approx(DEVIATION, abs=0.02)


def test_last_step_is_the_denoised_picture() -> None:
    start, levels = torch.ones(3, 4, 2, 2), torch.tensor([2.0, 0.0])
    expected = texture(start, torch.full((3,), 2.0))
    torch.testing.assert_close(sample_euler_ancestral(texture, start, levels), expected)


# --- Samplers by name ---------------------------------------------------------------------------------------


def test_names() -> None:
    assert sampler_names() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_by_name(sigmas: Tensor, name: str) -> None:
    """Each draws from the Gaussian, and those without noise of their own go where the exact flow goes."""
    # Evenly spaced in log sigma, without which the multistep SDE solvers are far off (dpmpp_3m_sde by 80 %).
    levels = schedule_sigmas("exponential", sigmas, 40)
    states: list[dict[str, Any]] = []
    torch.manual_seed(1)
    start = torch.randn(2, 4, 16, 16) * levels[0]
    end = sample(name, gaussian, start, levels, callback=states.append)
    assert states and states[0]["x"].shape == start.shape
    assert end.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert end.std().item() == pytest.approx(DEVIATION, abs=0.06)
    if name in DETERMINISTIC:
        error = (end - gaussian_flow(start, levels[0])).abs().max().item()
        assert error < 0.1


def test_unknown_sampler_is_one_line(sigmas: Tensor) -> None:
    with pytest.raises(UserError, match="expected one of .*euler_ancestral.*, got 'plms'") as error:
        sample("plms", gaussian, torch.zeros(1, 4, 2, 2), get_sigmas(sigmas, 2))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_default_sampler_does_not_import_k_diffusion() -> None:
    program = f"""
import sys, torch
from ldm.sampling.samplers import sample
z = sample({DEFAULT!r}, lambda z, sigma: z * 0, torch.ones(1, 4, 2, 2), torch.tensor([2.0, 1.0, 0.0]))
assert not z.any()
print([name for name in sys.modules if name.split(".")[0] in ("torchdiffeq", "torchsde", "scipy")])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
