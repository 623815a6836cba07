"""Lightning data module over the datasets that a config names, and the datasets that only training needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from ldm.data.formats import pair_paths, read_examples, read_picture
from ldm.images import to_tensor
from ldm.util import UserError, instantiate_from_config


class DataModuleFromConfig(pl.LightningDataModule):
    """Builds a loader for each dataset of the config.

    Args:
        batch_size: examples a batch and process.
        train, validation, test, predict: ``{target, params}`` of each dataset.
        wrap: historical; must be false.
        num_workers: loader processes; 0 loads in the main process.
    """

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        predict: Mapping[str, Any] | None = None,
        wrap: bool = False,
        num_workers: int | None = None,
    ) -> None:
        super().__init__()
        if wrap:
            raise UserError("data: wrap: true is not supported")
        self.batch_size = batch_size
        self.num_workers = batch_size * 2 if num_workers is None else num_workers
        given = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.dataset_configs = {name: config for name, config in given.items() if config is not None}
        self.datasets: dict[str, Dataset] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.datasets:
            return
        self.datasets = {name: instantiate_from_config(c) for name, c in self.dataset_configs.items()}
        for name, dataset in self.datasets.items():
            if len(dataset) == 0:
                raise UserError(f"data: the {name} dataset is empty")

    def _loader(self, name: str, shuffle: bool) -> DataLoader | list:
        if name not in self.datasets:
            return []
        return DataLoader(
            self.datasets[name],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            shuffle=shuffle,
            drop_last=shuffle and len(self.datasets[name]) >= self.batch_size,
            persistent_workers=self.num_workers > 0,
        )

    def train_dataloader(self) -> DataLoader | list:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        return self._loader("validation", shuffle=False)

    def test_dataloader(self) -> DataLoader | list:
        return self._loader("test", shuffle=False)

    def predict_dataloader(self) -> DataLoader | list:
        return self._loader("predict", shuffle=False)


class PictureDataset(Dataset):
    """Every picture of a dataset in the published layout, one by one, for training the autoencoder.

    Args:
        path: the dataset.
        start, stop: which pairs of it, by index, as in a slice.
    """

    def __init__(self, path: str, start: int | None = None, stop: int | None = None) -> None:
        examples = read_examples(path)[start:stop]
        pairs = (pair_paths(e.folder, seed) for e in examples for seed in e.seeds)
        self.files: list[Path] = [file for pair in pairs for file in pair]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": to_tensor(read_picture(self.files[i]))[0]}  # [3, H, W] in [-1, 1]
