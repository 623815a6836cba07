"""MixedDataset: shares, order and mistakes of several datasets as one."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from ldm.data.mixed import MixedDataset, shares_of_an_epoch
from ldm.util import UserError, instantiate_from_config
from tiny_training import SIDE, write_dataset


def write_named(root: Path, name: str, count: int) -> dict[str, Any]:
    """A dataset whose instructions are "{name} {i}", as a config."""
    write_dataset(root / name, count=count)
    for i in range(count):
        prompt = {"input": "a", "edit": f"{name} {i}", "output": "b"}
        (root / name / f"{i:07}" / "prompt.json").write_text(json.dumps(prompt))
    sizes = {"min_resize_res": SIDE, "max_resize_res": SIDE, "crop_res": SIDE}
    params = {"path": str(root / name), "splits": [1.0, 0.0, 0.0], **sizes}
    return {"target": "edit_dataset.EditDataset", "params": params}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("mix")
    return [write_named(root, "photo", 8), write_named(root, "drawing", 3)]


def instructions(data: MixedDataset) -> list[str]:
    return [data[i]["edit"]["c_crossattn"] for i in range(len(data))]


def test_without_weights_every_example_comes_once(configs: list[dict[str, Any]]) -> None:
    found = instructions(MixedDataset(configs))
    assert sorted(found) == sorted([f"photo {i}" for i in range(8)] + [f"drawing {i}" for i in range(3)])


def test_shares_follow_the_weights(configs: list[dict[str, Any]]) -> None:
    """Half and half of 8 and 3: 16 examples, each photo once, each drawing two or three times."""
    data = MixedDataset(configs, [0.5, 0.5])
    found = Counter(instructions(data))
    assert {found[f"photo {i}"] for i in range(8)} == {1}
    assert [found[f"drawing {i}"] for i in range(3)] == [3, 3, 2]
    for length in (4, 8, 12):  # and so in every part of the epoch
        assert abs(int((data.sources[:length] == 0).sum()) - length / 2) <= 1


def test_shares_are_exact_for_any_weights() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        count = int(random.integers(1, 6))
        lengths = random.integers(1, 400, count).tolist()
        weights = np.round(random.uniform(0.05, 1, count), 2).tolist()
        counts = shares_of_an_epoch(lengths, weights)
        size, whole = sum(counts), sum(weights)
        for n, length, weight in zip(counts, lengths, weights, strict=True):
            assert abs(n - size * weight / whole) < 1 + 1e-6
            assert n >= length
        # no longer than it must be
        assert any((size - 1) * w / whole < n + 1e-6 for n, w in zip(lengths, weights, strict=True))


def test_weights_count_as_they_are_written() -> None:
    assert shares_of_an_epoch([7, 3], [0.7, 0.3]) == [7, 3]
    assert shares_of_an_epoch([700, 100, 200], [7, 1, 2]) == [700, 100, 200]


def test_an_index_always_means_the_same_example(configs: list[dict[str, Any]]) -> None:
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        orders.append(instructions(MixedDataset(configs, [3, 1])))
    assert orders[0] == orders[1]


def test_from_yaml_with_workers(configs: list[dict[str, Any]]) -> None:
    config = {
        "target": "ldm.data.mixed.MixedDataset",
        "params": {"datasets": configs, "weights": [0.25, 0.75]},
    }
    data = instantiate_from_config(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(config))))
    found: list[str] = []
    for batch in DataLoader(data, batch_size=4, num_workers=2):
        assert batch["edited"].shape[1:] == (3, SIDE, SIDE)
        found += batch["edit"]["c_crossattn"]
    assert found == instructions(data)
    assert Counter(text.split()[0] for text in found) == {"photo": 8, "drawing": 24}


def test_mixes_can_be_mixed(configs: list[dict[str, Any]]) -> None:
    inner = {"target": "ldm.data.mixed.MixedDataset", "params": {"datasets": configs}}
    data = MixedDataset([inner, configs[1]], [11, 3])
    assert Counter(instructions(data))["drawing 0"] == 2 and data.crop_res == (SIDE, SIDE)


@pytest.mark.parametrize(
    "weights",
    [
        [1],
        [1, 2, 3],
        [1, 0],
        [1, -1],
        [1, float("nan")],
        [1, float("inf")],
        [1, "2"],
        [1, None],
        [True, 1],
        0.5,
        "12",
    ],
)
def test_wrong_weights(configs: list[dict[str, Any]], weights: Any) -> None:
    with pytest.raises(UserError, match="expected 2 positive weights, one a dataset, got"):
        MixedDataset(configs, weights)


def test_wrong_datasets(configs: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="expected at least one dataset"):
        MixedDataset([])
    empty = {**configs[0], "params": {**configs[0]["params"], "split": "val"}}
    with pytest.raises(UserError, match=r"edit_dataset\.EditDataset has no examples"):
        MixedDataset([configs[0], empty])
    larger = {**configs[1], "params": {**configs[1]["params"], "crop_res": [SIDE, 2 * SIDE]}}
    with pytest.raises(UserError, match=r"same crop_res in all datasets, got \[32, 32\] and \[32, 64\]"):
        MixedDataset([configs[0], larger])
    with pytest.raises(UserError, match="unknown parameter"):
        MixedDataset([{**configs[0], "params": {**configs[0]["params"], "wieght": 1}}])
