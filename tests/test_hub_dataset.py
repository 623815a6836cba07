"""HubEditDataset on real parquet files in the column layouts that are published."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from edit_dataset import EditDataset
from hub_server import hub
from ldm.data.formats import pair_paths, read_examples, read_prompt
from ldm.data.hub import HubEditDataset
from ldm.util import UserError, instantiate_from_config
from tiny_training import SIDE, write_dataset

COUNT = 10
SIZES = {"min_resize_res": SIDE, "max_resize_res": SIDE, "crop_res": SIDE}
# Names of the columns: picture before, instruction, picture after, and the others that are there.
LAYOUTS = {
    "instructpix2pix": (
        "original_image",
        "edit_prompt",
        "edited_image",
        ["original_prompt", "edited_prompt"],
    ),
    "samples": ("input_image", "edit_prompt", "edited_image", []),
    "magicbrush": ("source_img", "instruction", "target_img", ["img_id"]),
}


def column_params(layout: str) -> dict[str, Any]:
    return dict(zip(("before_column", "edit_column", "after_column"), LAYOUTS[layout][:3], strict=True))


def rows_of(folder: Path) -> list[tuple[bytes, str, bytes]]:
    """Files and instructions of a dataset in the published layout."""
    found = []
    for example in read_examples(folder):
        before, after = (file.read_bytes() for file in pair_paths(example.folder, example.seeds[0]))
        found.append((before, read_prompt(example.folder).edit, after))
    return found


def write_parquet(file: Path, rows: list[tuple[Any, Any, Any]], layout: str = "instructpix2pix") -> Path:
    """Write rows as the hub's files are, by `datasets`."""
    before, edit, after, others = LAYOUTS[layout]
    pictures = {before: [row[0] for row in rows], after: [row[2] for row in rows]}
    texts = {edit: [row[1] for row in rows]} | {name: ["text"] * len(rows) for name in others}
    kinds = dict.fromkeys(pictures, datasets.Image()) | dict.fromkeys(texts, datasets.Value("string"))
    table = datasets.Dataset.from_dict(pictures | texts, features=datasets.Features(kinds))
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(str(file))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("folder"), count=COUNT)


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """Opens a dataset with its cache in the test's own folder."""

    def build(path: Path | str, **params: Any) -> HubEditDataset:
        defaults = {**SIZES, "splits": (1.0, 0.0, 0.0), "cache_dir": str(tmp_path / "cache")}
        return HubEditDataset(str(path), **{**defaults, **params})

    return build


def one_line(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return (
        a["edit"]["c_crossattn"] == b["edit"]["c_crossattn"]
        and torch.equal(a["edited"], b["edited"])
        and torch.equal(a["edit"]["c_concat"], b["edit"]["c_concat"])
    )


# --- What comes out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("crop", [SIDE, [SIDE, SIDE + 8]])
def test_items_are_those_of_the_folder(
    folder: Path, tmp_path: Path, opened: Any, layout: str, crop: Any
) -> None:
    """Split, size, crop and flip as `EditDataset`, which draws a seed before them."""
    file = write_parquet(tmp_path / "data.parquet", rows_of(folder), layout)
    params: dict[str, Any] = {**SIZES, "max_resize_res": SIDE + 9, "crop_res": crop, "flip_prob": 0.5}
    for split, count in (("train", 7), ("val", 2), ("test", 1)):
        params |= {"split": split, "splits": [0.7, 0.2, 0.1]}
        pictures, rows = EditDataset(str(folder), **params), opened(file, **params, **column_params(layout))
        assert len(pictures) == len(rows) == count
        for i in range(count):
            torch.manual_seed(i)
            expected = pictures[i]
            torch.manual_seed(i)
            torch.randint(1, ())
            assert same(rows[i], expected)


def test_files_in_order_from_a_folder_and_a_pattern(folder: Path, tmp_path: Path, opened: Any) -> None:
    rows = rows_of(folder)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[6:])
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:6])
    write_parquet(tmp_path / "data" / "dev-00000-of-00001.parquet", rows[:3])
    found = opened(tmp_path / "data" / "train-*.parquet")
    texts = [found[i]["edit"]["c_crossattn"] for i in range(len(found))]
    assert texts == [row[1] for row in rows]
    assert len(opened(tmp_path / "data")) == 13, "a folder stands for all files in it"


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_pictures_as_plain_arrow_columns(folder: Path, tmp_path: Path, opened: Any, kind: str) -> None:
    """Files that were not written by `datasets` do not say which columns are pictures."""
    rows = rows_of(folder)
    columns: dict[str, Any] = {"edit_prompt": [row[1] for row in rows]}
    for name, place in (("original_image", 0), ("edited_image", 2)):
        files = [row[place] for row in rows]
        columns[name] = files if kind == "binary" else [{"bytes": file, "path": "x.jpg"} for file in files]
    pq.write_table(pa.table(columns), tmp_path / "plain.parquet")
    plain = opened(tmp_path / "plain.parquet")
    usual = opened(write_parquet(tmp_path / "usual.parquet", rows))
    assert len(plain) == COUNT and all(same(plain[i], usual[i]) for i in range(COUNT))


def test_png_with_transparency(tmp_path: Path, opened: Any) -> None:
    png = io.BytesIO()
    Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 128)).save(png, "PNG")
    data = opened(write_parquet(tmp_path / "a.parquet", [(png.getvalue(), "e", png.getvalue())]))
    assert torch.equal(data[0]["edited"][:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


def test_workers(folder: Path, tmp_path: Path, opened: Any) -> None:
    data = opened(write_parquet(tmp_path / "data.parquet", rows_of(folder)))
    workers = DataLoader(data, batch_size=5, num_workers=2)
    for batch, expected in zip(workers, DataLoader(data, batch_size=5), strict=True):
        assert same(batch, expected)


def test_workers_that_are_started_afresh_get_the_place_of_the_rows(
    folder: Path, tmp_path: Path, opened: Any
) -> None:
    """They receive the dataset pickled: the path of the mapped file, not its contents."""
    data = opened(write_parquet(tmp_path / "data.parquet", rows_of(folder)))
    content = pickle.dumps(data)
    assert len(content) < sum(len(row[0]) + len(row[2]) for row in rows_of(folder))
    assert same(pickle.loads(content)[4], data[4])


def test_nothing_is_unpacked_and_other_columns_are_not_read(
    folder: Path, tmp_path: Path, opened: Any
) -> None:
    data = opened(write_parquet(tmp_path / "data.parquet", rows_of(folder)))
    assert data[0]["edited"].shape == (3, SIDE, SIDE)
    files = [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert sum(name.endswith(".arrow") for name in files) == 1
    assert not [name for name in files if not name.endswith((".arrow", ".lock", "dataset_info.json"))]
    assert data.rows.table.column_names == ["original_image", "edit_prompt", "edited_image"]


def test_pictures_are_decoded_when_they_are_asked_for(folder: Path, tmp_path: Path, opened: Any) -> None:
    rows = [(b"no picture", "e", b"no picture"), *rows_of(folder)]
    data = opened(write_parquet(tmp_path / "data.parquet", rows))
    assert data[1]["edited"].shape == (3, SIDE, SIDE)


def test_from_yaml_and_in_a_mix(folder: Path, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "data.parquet", rows_of(folder)[:4], "magicbrush")
    shared = {**SIZES, "splits": [1.0, 0.0, 0.0]}
    rows = {"path": str(file), "cache_dir": str(tmp_path / "cache"), **column_params("magicbrush"), **shared}
    configs = [
        {"target": "ldm.data.hub.HubEditDataset", "params": rows},
        {"target": "edit_dataset.EditDataset", "params": {"path": str(folder), **shared}},
    ]
    mix = {"target": "ldm.data.mixed.MixedDataset", "params": {"datasets": configs}}
    data = instantiate_from_config(mix)
    assert len(data) == 4 + COUNT and data.crop_res == (SIDE, SIDE)
    assert len(next(iter(DataLoader(data, batch_size=14, num_workers=1)))["edited"]) == 14


@pytest.mark.slow
def test_the_library_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, ldm.data.hub, edit_dataset, ldm.data.mixed\n"
        "print({'datasets', 'pyarrow'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# --- Mistakes -----------------------------------------------------------------------------------------------


def test_missing_column(folder: Path, tmp_path: Path, opened: Any) -> None:
    file = write_parquet(tmp_path / "data.parquet", rows_of(folder), "samples")
    message = one_line(opened, file)
    assert f"{file}: expected a column 'original_image', got " in message and "input_image" in message


def test_columns_of_another_type(folder: Path, tmp_path: Path, opened: Any) -> None:
    file = write_parquet(tmp_path / "data.parquet", rows_of(folder))
    assert "expected pictures in column 'edit_prompt'" in one_line(opened, file, after_column="edit_prompt")
    assert "expected text in column 'edited_image'" in one_line(opened, file, edit_column="edited_image")


def test_no_file(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "train-*.parquet"):
        assert f"dataset {path}: expected parquet files, got none" in one_line(opened, path)
    for path in (tmp_path / "nothing.parquet", "owner/nothing.parquet", tmp_path / "nowhere"):
        assert "expected a parquet file, a folder, a pattern or owner/name" in one_line(opened, path)


def test_broken_file(tmp_path: Path, opened: Any) -> None:
    file = tmp_path / "broken.parquet"
    file.write_bytes(b"PAR1 nothing of the kind")
    assert f"dataset {file}: cannot be read as parquet: " in one_line(opened, file)


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\xff\xd8\xff\xe0 broken", "cut"])
def test_broken_picture(folder: Path, tmp_path: Path, opened: Any, content: Any) -> None:
    rows = rows_of(folder)
    before, text, after = rows[2]
    rows[2] = (before, text, after[: len(after) // 2] if content == "cut" else content)
    data = opened(write_parquet(tmp_path / "data.parquet", rows))
    message = one_line(data.__getitem__, 2)
    assert message.startswith(f"dataset: cannot read the picture {data.rows.path}, row 2, edited_image: ")
    assert data[3]["edit"]["c_crossattn"] == rows[3][1], "the others can be read"


def test_no_instruction(folder: Path, tmp_path: Path, opened: Any) -> None:
    rows: list[Any] = rows_of(folder)
    rows[2] = (rows[2][0], None, rows[2][2])
    data = opened(write_parquet(tmp_path / "data.parquet", rows))
    assert "row 2, edit_prompt: expected text, got null" in one_line(data.__getitem__, 2)


def test_wrong_split_and_sizes_are_told_before_any_file_is_read(tmp_path: Path, opened: Any) -> None:
    assert "expected one of train, val, test, got 'dev'" in one_line(opened, tmp_path, split="dev")
    assert "expected crop_res as one number" in one_line(opened, tmp_path, crop_res=36)


# --- A name on the hub --------------------------------------------------------------------------------------

OPEN = """
import sys
from ldm.data.hub import HubEditDataset
from ldm.util import UserError
asked = ("owner/name", "train"), ("owner/name", "dev"), ("owner/name", "test"), ("owner/no", "dev")
for name, split in asked:
    try:
        data = HubEditDataset(name, splits=[1.0, 0.0, 0.0], hub_split=split, cache_dir=sys.argv[1])
        print(len(data), data[1]["edit"]["c_crossattn"])
    except UserError as error:
        print(error)
"""


def run_open(tmp_path: Path, **environment: str) -> list[str]:
    """Open datasets by name in a process of their own: `datasets` learns the hub's address when imported."""
    command = [sys.executable, "-c", OPEN, str(tmp_path / "cache")]
    variables = {**os.environ, "HF_HOME": str(tmp_path / "home"), **environment}
    result = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


@pytest.mark.slow
def test_from_a_hub(folder: Path, tmp_path: Path) -> None:
    """Its own splits are told apart, all files of one are read, and what is not there is named."""
    rows, repository = rows_of(folder), tmp_path / "hub" / "owner" / "name"
    write_parquet(repository / "data" / "train-00000-of-00002.parquet", rows[:6])
    write_parquet(repository / "data" / "train-00001-of-00002.parquet", rows[6:])
    write_parquet(repository / "data" / "dev-00000-of-00001.parquet", rows[5:8])
    (repository / "README.md").write_text("---\nlicense: mit\n---\n")
    with hub(tmp_path / "hub") as server:
        train, dev, test, missing = run_open(tmp_path, HF_ENDPOINT=server.url, HF_HUB_OFFLINE="0")
    assert (train, dev) == (f"{COUNT} {rows[1][1]}", f"3 {rows[6][1]}")
    assert test.startswith("dataset owner/name: cannot be read as a file, a folder or a dataset on the hub: ")
    assert "Unknown split" in test and "['train', 'dev']" in test
    assert "dataset owner/no: cannot be read" in missing and "doesn't exist on the Hub" in missing


@pytest.mark.slow
def test_hub_out_of_reach(tmp_path: Path) -> None:
    for line in run_open(tmp_path, HF_HUB_OFFLINE="1"):
        assert (
            "cannot be read as a file, a folder or a dataset on the hub: " in line
            and "offline" in line.lower()
        )
