"""Captioned pictures for a text-to-image training, taken from a dataset of pairs and its latent cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.data.formats import pair_paths, read_prompt
from ldm.data.pairs import check_share
from ldm.training.latent_cache import CachedEditDataset
from ldm.util import UserError


@dataclass(eq=False, repr=False)
class CachedCaptionDataset(CachedEditDataset):
    """The distinct pictures of a dataset of pairs, before and after alike, each with its caption.

    An example is ``image``, posterior parameters [2 z, h, w], and ``caption``. Without some empty captions a
    model could not be guided by text: `uncond_share` of them are emptied, drawn like all that is random here
    from torch's global generator, which a training seeds for every example.

    Args:
        path, split, splits, flip_prob, resolution: as for `CachedEditDataset`.
        uncond_share: share of the examples whose caption is left empty.

    Raises:
        UserError: as for `CachedEditDataset`, or a share that is none.
    """

    uncond_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("uncond_share", self.uncond_share)
        places: dict[int, tuple[Path, str, int]] = {}  # folder, seed and side of each picture, by its row
        for _, start, example in self.examples:
            for offset, seed in enumerate(example.seeds):
                for side, row in enumerate(self._rows[start + offset].tolist()):
                    places.setdefault(row, (example.folder, seed, side))
        self._places = list(places.items())

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row, (folder, seed, side) = self._places[i]
        mirrored = int(torch.rand(()) < self.flip_prob)
        emptied = bool(torch.rand(()) < self.uncond_share)
        if not self._pictures.read("readable", row):
            raise UserError(f"dataset: {pair_paths(folder, seed)[side]} could not be read to be encoded")
        prompt = read_prompt(folder)
        return {
            "image": self._pictures.read("values", row, mirrored).float(),  # [2 z, h, w]
            "caption": "" if emptied else (prompt.caption, prompt.output)[side],
        }
