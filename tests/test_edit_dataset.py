"""EditDataset and EditDatasetEval on datasets in the published layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edit_dataset import EditDataset, EditDatasetEval
from ldm.data.formats import read_examples, split_examples
from ldm.util import UserError
from tiny_training import SIDE, write_dataset

CROP = {"min_resize_res": SIDE, "max_resize_res": SIDE, "crop_res": SIDE}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), count=20, seeds=2)


def all_train(path: Path, **params: Any) -> EditDataset:
    return EditDataset(str(path), split="train", splits=(1.0, 0.0, 0.0), **{**CROP, **params})


def twins(root: Path) -> Path:
    """A dataset of one example in which before and after are one noisy picture without any symmetry."""
    write_dataset(root, count=1)
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for name in ("100_0.jpg", "100_1.jpg"):
        Image.fromarray(noise).save(root / "0000000" / name, quality=100)
    return root


# --- Which examples -----------------------------------------------------------------------------------------


def test_splits_go_by_index(dataset: Path) -> None:
    names = [f"{i:07}" for i in range(20)]
    found = {
        split: [example.folder.name for example in EditDataset(str(dataset), split=split, **CROP).examples]
        for split in ("train", "val", "test")
    }
    assert found == {"train": names[:18], "val": names[18:19], "test": names[19:]}


@pytest.mark.parametrize("count", [1, 3, 19, 77, 313])
@pytest.mark.parametrize("splits", [(0.9, 0.05, 0.05), (0.7, 0.2, 0.1), (0.1, 0.2, 0.7), (1.0, 0.0, 0.0)])
def test_every_example_is_in_one_split(count: int, splits: tuple[float, float, float]) -> None:
    numbers: list[Any] = list(range(count))
    parts = [split_examples(numbers, split, splits) for split in ("train", "val", "test")]
    assert sum(parts, []) == numbers
    assert len(parts[0]) == int(splits[0] * count)


def test_order_is_that_of_the_index(tmp_path: Path) -> None:
    write_dataset(tmp_path, count=3)
    rows = json.loads((tmp_path / "seeds.json").read_text())
    (tmp_path / "seeds.json").write_text(json.dumps(rows[::-1]))
    assert [e.folder.name for e in read_examples(tmp_path)] == ["0000002", "0000001", "0000000"]


# --- What an example is -------------------------------------------------------------------------------------


def test_training_example(dataset: Path) -> None:
    example = all_train(dataset)[3]
    assert example.keys() == {"edited", "edit"} and example["edit"].keys() == {"c_concat", "c_crossattn"}
    assert example["edit"]["c_crossattn"] == "make it yellow"
    for picture in (example["edited"], example["edit"]["c_concat"]):
        assert picture.shape == (3, SIDE, SIDE) and picture.dtype == torch.float32
        assert -1 <= picture.min() < 0.1 and 0.9 < picture.max() <= 1
    grey, yellow = example["edit"]["c_concat"], example["edited"]
    middle = (slice(None), SIDE // 2, SIDE // 2)
    torch.testing.assert_close(grey[middle], torch.full((3,), 0.0), rtol=0, atol=0.05)
    torch.testing.assert_close(yellow[middle], torch.tensor([1.0, 1.0, -1.0]), rtol=0, atol=0.05)


@pytest.mark.parametrize("caption", ["input", "caption"])
def test_evaluation_example(tmp_path: Path, caption: str) -> None:
    """Released prompts call the first caption `input`, self-made ones `caption`."""
    write_dataset(tmp_path, count=2, caption=caption)
    example = EditDatasetEval(str(tmp_path), splits=(1.0, 0.0, 0.0), res=48)[1]
    assert example.keys() == {"image_0", "input_prompt", "edit", "output_prompt"}
    assert example["image_0"].shape == (3, 48, 48)
    texts = [example[name] for name in ("input_prompt", "edit", "output_prompt")]
    assert texts == ["a grey disc", "make it green", "a green disc"]


def test_both_pictures_are_of_one_seed_and_every_seed_comes(tmp_path: Path) -> None:
    """Pictures of seed 100 + k are as bright as k says, so a picture tells its seed."""
    write_dataset(tmp_path, count=1, seeds=4)
    for k in range(4):
        for side in (0, 1):
            file = tmp_path / "0000000" / f"{100 + k}_{side}.jpg"
            Image.new("RGB", (SIDE, SIDE), (60 * k, 255 * side, 0)).save(file, quality=100)
    torch.manual_seed(0)
    data, seen = all_train(tmp_path), set()
    for _ in range(40):
        example = data[0]
        pair = [example["edit"]["c_concat"], example["edited"]]
        seeds = [round((picture[0].mean().item() + 1) * 127.5 / 60) for picture in pair]
        assert seeds[0] == seeds[1]
        assert pair[0][1].mean() < -0.9 and pair[1][1].mean() > 0.9, "before and after are not swapped"
        seen.add(seeds[0])
    assert seen == {0, 1, 2, 3}


def draws(path: Path, n: int, **params: Any) -> list[Tensor]:
    """Pictures drawn from a dataset of twins; before and after must come out as twins."""
    torch.manual_seed(0)
    data, pictures = all_train(path, **params), []
    for _ in range(n):
        example = data[0]
        assert torch.equal(example["edited"], example["edit"]["c_concat"])
        pictures.append(example["edited"])
    return pictures


def test_flip_is_of_both_pictures(tmp_path: Path) -> None:
    path = twins(tmp_path)
    (plain,) = draws(path, 1, flip_prob=0.0)
    (flipped,) = draws(path, 1, flip_prob=1.0)
    assert torch.equal(flipped, plain.flip(2)) and not torch.equal(flipped, plain)
    share = np.mean([torch.equal(picture, flipped) for picture in draws(path, 100, flip_prob=0.5)])
    assert 0.3 < share < 0.7


def test_crop_is_of_both_pictures(tmp_path: Path) -> None:
    """All 9 x 9 places of the crop within the resized picture are possible."""
    path, size = twins(tmp_path), SIDE + 8
    (whole,) = draws(path, 1, min_resize_res=size, max_resize_res=size, crop_res=size)
    places = set()
    for picture in draws(path, 60, min_resize_res=size, max_resize_res=size, crop_res=SIDE):
        windows = whole.unfold(1, SIDE, 1).unfold(2, SIDE, 1)  # [3, 9, 9, SIDE, SIDE]
        same = (windows == picture[:, None, None]).all(-1).all(-1).all(0).nonzero()
        assert len(same) == 1
        places.add(tuple(same[0].tolist()))
    assert len(places) > 30
    assert {row for row, _ in places} == {column for _, column in places} == set(range(9))


def test_size_is_drawn_between_the_limits(tmp_path: Path) -> None:
    path = twins(tmp_path)
    sizes = {}
    for size in (SIDE, SIDE + 1, SIDE + 2):
        (picture,) = draws(path, 1, min_resize_res=size, max_resize_res=size, crop_res=size)
        sizes[size] = picture[:, :SIDE, :SIDE]
    seen = set()
    for picture in draws(path, 60, min_resize_res=SIDE, max_resize_res=SIDE + 2, crop_res=SIDE):
        seen |= {size for size, corner in sizes.items() if torch.equal(corner, picture)}
    assert seen == set(sizes)


def test_torch_seed_decides_everything(dataset: Path) -> None:
    data = all_train(dataset, min_resize_res=SIDE, max_resize_res=SIDE + 9, flip_prob=0.5)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(torch.stack([data[i]["edited"] for i in range(4)]))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


# --- Mistakes -----------------------------------------------------------------------------------------------


def one_line(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_wrong_parameters(dataset: Path) -> None:
    assert "expected one of train, val, test, got 'dev'" in one_line(EditDataset, str(dataset), split="dev")
    assert "three shares that add up to 1" in one_line(EditDataset, str(dataset), splits=(0.9, 0.2, 0.1))
    assert "three shares that add up to 1" in one_line(EditDataset, str(dataset), splits=(0.9, 0.1))
    for sizes in ((32, 32, 64), (64, 32, 32), (0, 0, 0)):
        names = dict(zip(("min_resize_res", "max_resize_res", "crop_res"), sizes, strict=True))
        message = one_line(EditDataset, str(dataset), **names)
        assert "expected crop_res <= min_resize_res <= max_resize_res" in message


def test_no_dataset_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        assert str(path / "seeds.json") in one_line(all_train, path)


@pytest.mark.parametrize(
    "content", ["", "no json", "{}x", '{"a": 1}', "[1, 2]", '[["a", 5]]', '[[3, ["1"]]]', '[["a", []]]', "5"]
)
def test_broken_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "seeds.json").write_text(content)
    assert "seeds.json" in one_line(all_train, tmp_path)


@pytest.mark.parametrize(
    "content",
    [None, "", "{", "[]", "3", '{"edit": "e", "output": "o"}', '{"input": 1, "edit": "e", "output": "o"}',
     '{"input": "i", "edit": null, "output": "o"}'],
)  # fmt: skip
def test_broken_prompt(tmp_path: Path, content: str | None) -> None:
    write_dataset(tmp_path, count=1)
    file = tmp_path / "0000000" / "prompt.json"
    file.unlink() if content is None else file.write_text(content)
    message = one_line(all_train(tmp_path).__getitem__, 0)
    assert f"{file}: expected input (or caption), edit and output" in message


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\xff\xd8\xff\xe0 broken"])
def test_broken_picture(tmp_path: Path, content: bytes | None) -> None:
    write_dataset(tmp_path, count=1)
    file = tmp_path / "0000000" / "100_1.jpg"
    file.unlink() if content is None else file.write_bytes(content)
    assert f"cannot read the picture {file}" in one_line(all_train(tmp_path).__getitem__, 0)
