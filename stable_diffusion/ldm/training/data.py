"""Lightning data module over the datasets that a config names, and the datasets that only training needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ldm.data.formats import pair_paths, read_examples, read_picture
from ldm.pictures.fitting import to_tensor
from ldm.training.stream import ExampleStream, SeededExamples, ShareOfExamples, collate
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
        self.datasets: dict[str, Any] = {}  # each a `Dataset` of known length
        self.seed = 0  # of the order and of all that is drawn for an example; the run sets it
        self.examples_seen = 0  # of the training stream, by all processes
        self.skipped = 0  # broken training examples that this process passed over

    def state_dict(self) -> dict[str, Any]:
        return {"examples_seen": self.examples_seen, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written, with its seed."""
        self.examples_seen, self.seed = state_dict["examples_seen"], state_dict["seed"]

    def count(self, batch: Mapping[str, Any], examples: int) -> None:
        """Note that a training batch of this process, of so many `examples`, has been trained on."""
        world_size = self.trainer.world_size if self.trainer else 1
        self.examples_seen += examples * world_size
        self.skipped += batch["skipped"]

    def on_before_batch_transfer(self, batch: Mapping[str, Any] | UserError, dataloader_idx: int) -> Any:
        if isinstance(batch, UserError):
            raise batch
        return batch

    def setup(self, stage: str | None = None) -> None:
        if self.datasets:
            return
        self.datasets = {name: instantiate_from_config(c) for name, c in self.dataset_configs.items()}
        for name, dataset in self.datasets.items():
            if len(dataset) == 0:
                raise UserError(f"data: the {name} dataset is empty")

    def _loader(self, name: str, train: bool = False) -> DataLoader | list:
        if name not in self.datasets:
            return []
        size = len(self.datasets[name])
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler: Sampler
        if train:
            position = lambda: self.examples_seen  # noqa: E731  asked again every epoch
            sampler = ExampleStream(size, self.batch_size, self.seed, rank, world_size, position)
        else:
            sampler = ShareOfExamples(size, rank, world_size)
        return DataLoader(
            SeededExamples(self.datasets[name], self.seed),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            sampler=sampler,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader | list:
        return self._loader("train", train=True)

    def val_dataloader(self) -> DataLoader | list:
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader | list:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader | list:
        return self._loader("predict")


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
