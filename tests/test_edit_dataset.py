"""EditDataset and EditDatasetEval on datasets in the published layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomCrop, RandomHorizontalFlip

from edit_dataset import EditDataset, EditDatasetEval
from ldm.data.formats import read_examples, split_examples
from ldm.pictures.fitting import to_tensor
from ldm.util import UserError, instantiate_from_config
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
    windows = {}
    for size in (SIDE, SIDE + 1, SIDE + 2):
        with Image.open(path / "0000000" / "100_0.jpg") as image:
            whole = to_tensor(image.resize((size, size), Image.Resampling.LANCZOS))[0]
        windows[size] = whole.unfold(1, SIDE, 1).unfold(2, SIDE, 1)  # [3, places, places, SIDE, SIDE]
    seen = set()
    for picture in draws(path, 60, min_resize_res=SIDE, max_resize_res=SIDE + 2, crop_res=SIDE):
        for size, places in windows.items():
            if (places == picture[:, None, None]).all(-1).all(-1).all(0).any():
                seen.add(size)
    assert seen == set(windows)


def test_torch_seed_decides_everything(dataset: Path) -> None:
    data = all_train(dataset, min_resize_res=SIDE, max_resize_res=SIDE + 9, flip_prob=0.5)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(torch.stack([data[i]["edited"] for i in range(4)]))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("largest", [SIDE, SIDE + 9])
def test_draws_are_the_published_ones(tmp_path: Path, largest: int) -> None:
    """Seed, size, crop and flip in this order, the last two as torchvision draws them."""
    path = write_dataset(tmp_path, count=3, seeds=3)
    data = all_train(path, max_resize_res=largest, flip_prob=0.5)
    for k in range(12):
        torch.manual_seed(k)
        example = data[1]
        rest = torch.rand(1)
        torch.manual_seed(k)
        seed = 100 + int(torch.randint(0, 3, ()))
        size = int(torch.randint(SIDE, largest + 1, ()))
        pictures = []
        for side in (0, 1):
            with Image.open(path / "0000001" / f"{seed}_{side}.jpg") as image:
                pictures.append(to_tensor(image.resize((size, size), Image.Resampling.LANCZOS))[0])
        pair = RandomHorizontalFlip(0.5)(RandomCrop(SIDE)(torch.cat(pictures)))  # [6, SIDE, SIDE]
        assert torch.equal(example["edit"]["c_concat"], pair[:3])
        assert torch.equal(example["edited"], pair[3:])
        assert torch.equal(rest, torch.rand(1)), "not as many numbers were drawn"


# --- Other shapes than squares ------------------------------------------------------------------------------

WIDE = {"min_resize_res": SIDE, "max_resize_res": SIDE, "crop_res": [SIDE, SIDE + 16]}


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved_pair(root: Path, before: Image.Image, after: Image.Image) -> Path:
    write_dataset(root, count=1)
    for name, image in (("100_0.jpg", before), ("100_1.jpg", after)):
        image.save(root / "0000000" / name, quality=100)
    return root


@pytest.mark.parametrize("factor", [1, 2])
def test_a_picture_of_the_crops_proportions_is_only_scaled(tmp_path: Path, factor: int) -> None:
    path = saved_pair(tmp_path, *[noise(factor * (SIDE + 16), factor * SIDE)] * 2)
    (picture,) = draws(path, 1, **WIDE)
    with Image.open(path / "0000000" / "100_0.jpg") as image:
        expected = to_tensor(image.resize((SIDE + 16, SIDE), Image.Resampling.LANCZOS))[0]
    assert torch.equal(picture, expected)


def test_other_crops_leave_the_proportions(tmp_path: Path) -> None:
    """A square picture stays square under a wide crop: the crop is as wide as it, at any height of it."""
    path, side = saved_pair(tmp_path, *[noise(80, 80)] * 2), SIDE + 16
    with Image.open(path / "0000000" / "100_0.jpg") as image:
        whole = to_tensor(image.resize((side, side), Image.Resampling.LANCZOS))[0]
    windows = whole.unfold(1, SIDE, 1).movedim(3, 2)  # [3, 17, SIDE, side]
    places = set()
    for picture in draws(path, 150, **WIDE):
        assert picture.shape == (3, SIDE, side)
        places.add(int((windows == picture[:, None]).all(-1).all(-1).all(0).nonzero()))
    assert places == set(range(17))


@pytest.mark.parametrize(("width", "height"), [(80, 80), (200, 40), (41, 97), (SIDE, SIDE), (33, 31)])
@pytest.mark.parametrize("crop", [[SIDE, 64], [64, SIDE], [SIDE, 40]])
def test_any_picture_fills_any_crop(tmp_path: Path, width: int, height: int, crop: list[int]) -> None:
    data = all_train(
        saved_pair(tmp_path, *[noise(width, height)] * 2), crop_res=crop, max_resize_res=SIDE + 9
    )
    for _ in range(5):
        assert data[0]["edited"].shape == (3, *crop)
    for size in (SIDE, SIDE + 9):
        new_height, new_width = data.resized_sides(noise(width, height), size)
        assert new_height >= crop[0] and new_width >= crop[1]
        assert new_width / width == pytest.approx(new_height / height, abs=1 / min(width, height))
        # as small as the drawn size asks for
        assert min(new_height * SIDE / crop[0], new_width * SIDE / crop[1]) == pytest.approx(size, abs=1)


def test_a_pair_of_unequal_pictures_gets_one_size(tmp_path: Path) -> None:
    data = all_train(saved_pair(tmp_path, noise(80, 60), noise(64, 64)), **WIDE)
    example = data[0]
    assert example["edited"].shape == example["edit"]["c_concat"].shape == (3, SIDE, SIDE + 16)


def test_shape_from_yaml_and_two_equal_sides(dataset: Path) -> None:
    config = {"target": "edit_dataset.EditDataset", "params": {"path": str(dataset), **CROP}}
    pictures = []
    for crop in (SIDE, [SIDE, SIDE], [SIDE, 2 * SIDE]):
        config["params"]["crop_res"] = crop  # type: ignore[index]
        torch.manual_seed(0)
        pictures.append(instantiate_from_config(OmegaConf.create(config))[0]["edited"])
    assert torch.equal(pictures[0], pictures[1]) and pictures[2].shape == (3, SIDE, 2 * SIDE)


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
    for sizes in (
        (32, 32, 64),
        (64, 32, 32),
        (31, 40, 32),
        (31, 40, [48, 32]),
        ("32", 40, 32),
        (32, 40.5, 32),
    ):
        names = dict(zip(("min_resize_res", "max_resize_res", "crop_res"), sizes, strict=True))
        message = one_line(EditDataset, str(dataset), **names)
        assert "expected crop_res <= min_resize_res <= max_resize_res" in message


@pytest.mark.parametrize("crop", [0, -8, 36, [32], [32, 36], [32, 32, 32], [], "32", 32.0, None, [32, None]])
def test_wrong_crop(dataset: Path, crop: Any) -> None:
    message = one_line(all_train, dataset, crop_res=crop)
    assert "expected crop_res as one number or [height, width], multiples of 8, got" in message


def test_wrong_chance_of_a_flip(dataset: Path) -> None:
    for chance in (-0.1, 50, "0.5", float("nan")):
        assert f"expected flip_prob from 0 to 1, got {chance!r}" in one_line(
            all_train, dataset, flip_prob=chance
        )


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
