"""The diagonal Gaussian posterior of the autoencoder (Kingma and Welling 2013, appendix B)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """A Gaussian with independent components, q(z | x).

    Args:
        parameters: [B, 2 z, h, w], mean and log variance stacked along the channels. The log variance is
            clamped to [-30, 20].
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)  # [B, z, h, w] each
        self.logvar = logvar.clamp(-30.0, 20.0)

    def mode(self) -> Tensor:
        """The most probable latent, [B, z, h, w]."""
        return self.mean

    def sample(self, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Tensor:
        """A random latent, [B, z, h, w]."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise(self.mean)

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence to the standard normal, summed over z, h, w: [B], in nats."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))
