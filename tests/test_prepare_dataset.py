"""prepare_dataset.py and ldm.data.shards: what training reads of a dataset, in folders or shards."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dataset_creation import prepare_dataset
from edit_dataset import EditDataset
from ldm.data.shards import pack, unpack
from ldm.util import UserError
from pair_runs import content
from training_runs import call

Capture = pytest.CaptureFixture[str]


def write_pair(folder: Path, seed: int, **line: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompt.json").write_text(
        json.dumps({"caption": "a cat", "edit": "dog", "output": folder.name})
    )
    for side in (0, 1):
        noise = np.random.default_rng(2 * seed + side).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{seed}_{side}.jpg", quality=100)
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"seed": seed, "p2p_threshold": 0.5, "cfg_scale": 9.0, **line}) + "\n")


def similar(clip: float, direction: float, image: float) -> dict[str, float]:
    return {"clip_sim_0": clip, "clip_sim_1": clip, "clip_sim_dir": direction, "clip_sim_image": image}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two prompts with three pairs, one without any."""
    root = tmp_path / "dataset"
    write_pair(root / "0000010", 7, **similar(0.3, 0.25, 0.9))
    write_pair(root / "0000010", 1234567890, **similar(0.3, 0.4, 0.72))
    write_pair(root / "0000002", 11, **similar(0.3, 0.2, 0.8))
    (root / "0000003").mkdir()
    (root / "0000003/prompt.json").write_text(json.dumps({"input": "a", "edit": "b", "output": "c"}))
    (root / "0000003/metadata.jsonl").write_text("")
    (root / ".0000004.part").mkdir()
    (root / "report.json").write_text("{}")
    return root


def rows(root: Path) -> list[list]:
    return json.loads((root / "seeds.json").read_text())


WHOLE = [["0000002", ["11"]], ["0000010", ["7", "1234567890"]]]


def test_the_published_command(dataset: Path):
    program = [sys.executable, prepare_dataset.__file__, dataset]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = "3 pairs of 2 prompts; nothing listed of 1 prompts; 0 incomplete"
    assert done.stdout == f"{dataset / 'seeds.json'}: {summary}\n"
    assert rows(dataset) == WHOLE
    first = (dataset / "seeds.json").read_bytes()
    assert subprocess.run(program, capture_output=True).returncode == 0
    assert (dataset / "seeds.json").read_bytes() == first
    train = EditDataset(
        str(dataset), "train", (1.0, 0.0, 0.0), min_resize_res=32, max_resize_res=32, crop_res=32
    )
    assert len(train) == 2 and train[0]["edit"]["c_crossattn"] == "dog"


@pytest.mark.parametrize(
    "words, expected, dropped",
    [
        (["--min-clip-img", "0.75"], [["0000002", ["11"]], ["0000010", ["7"]]], "image 1"),
        (["--min-clip-dir", "0.22"], [["0000010", ["7", "1234567890"]]], "direction 1"),
        (["--min-clip-dir", "0.3", "--min-clip-img", "0.7"], [["0000010", ["1234567890"]]], "direction 2"),
        (["--min-clip", "0.3"], WHOLE, ""),
    ],
)
def test_filter_by_metadata(dataset: Path, words: list[str], expected: list, dropped: str, capsys: Capture):
    assert call(prepare_dataset.main, dataset, *words) == 0
    assert rows(dataset) == expected
    line = capsys.readouterr().out
    assert line.endswith(f"; dropped by {dropped}\n") if dropped else "dropped" not in line


def test_a_threshold_drops_pairs_of_which_nothing_is_known(dataset: Path, capsys: Capture):
    write_pair(dataset / "0000005", 1)
    (dataset / "0000002/metadata.jsonl").unlink()
    assert call(prepare_dataset.main, dataset, "--min-clip", "0.1") == 0
    assert rows(dataset) == [WHOLE[1]]
    assert capsys.readouterr().out.endswith("dropped by without metadata 2\n")


def test_incomplete_pairs_are_named(dataset: Path, capsys: Capture):
    (dataset / "0000010/7_1.jpg").unlink()
    (dataset / "0000010/5_1.jpg").write_bytes(b"")
    write_pair(dataset / "0000006", 3)
    (dataset / "0000006/prompt.json").write_text("{half")
    assert call(prepare_dataset.main, dataset) == 0
    assert rows(dataset) == [["0000002", ["11"]], ["0000010", ["1234567890"]]]
    output = capsys.readouterr()
    left_out = [line for line in output.err.splitlines() if line.startswith("left out: ")]
    assert [line.split(": ")[1].removeprefix(f"{dataset}/") for line in left_out] == [
        "0000006/prompt.json", "0000010/5_0.jpg", "0000010/7_1.jpg",
    ]  # fmt: skip
    assert "3 incomplete" in output.out


def test_mistakes_leave_the_list_alone(dataset: Path, tmp_path: Path, capsys: Capture):
    (dataset / "seeds.json").write_text("before")
    for words, message in (
        ([tmp_path / "nothing"], "No such file or directory"),
        ([tmp_path], "expected folders of prompts with pairs to list"),
        ([dataset, "--min-clip", "0.99"], "expected folders of prompts with pairs to list, got 3 without"),
        ([dataset, "--min-clip", "7"], "expected -1 to 1, got 7.0"),
    ):
        assert call(prepare_dataset.main, *words) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert (dataset / "seeds.json").read_text() == "before"


# --- Shards -------------------------------------------------------------------------------------------------


def folders_of(root: Path) -> list[Path]:
    return sorted(root.glob("[0-9]*"))


def test_shards_give_the_same_folders(dataset: Path, tmp_path: Path):
    """Packed and unpacked, every file is as it was, and the shard the same each time."""
    shards = [tmp_path / name for name in ("a.tar", "b.tar")]
    pack(folders_of(dataset), shards[0])
    pack(folders_of(dataset)[::-1], shards[1])
    assert shards[0].read_bytes() == shards[1].read_bytes()
    assert unpack(shards[0], tmp_path / "again") == [folder.name for folder in folders_of(dataset)]
    assert content(tmp_path / "again") == content(dataset)


def test_prepare_unpacks_shards(dataset: Path, tmp_path: Path, capsys: Capture):
    (tmp_path / "tars").mkdir()
    pack(folders_of(dataset), tmp_path / "tars/pairs-0000002-0000010.tar")
    assert call(prepare_dataset.main, tmp_path / "tars") == 0
    assert rows(tmp_path / "tars") == WHOLE
    assert capsys.readouterr().out.startswith("unpacked pairs-0000002-0000010.tar: 3 prompts\n")
    assert call(prepare_dataset.main, tmp_path / "tars") == 0
    assert "unpacked" not in capsys.readouterr().out


def test_datasets_reads_shards(dataset: Path, tmp_path: Path):
    """The library `datasets` finds both pictures and the texts of every pair."""
    pack([dataset / "0000002", dataset / "0000010"], tmp_path / "pairs.tar")
    table = datasets.load_dataset(
        "webdataset", data_files=str(tmp_path / "pairs.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    found = {row["__key__"]: row for row in table}
    assert found.keys() == {"0000002_11", "0000010_7", "0000010_1234567890"}
    row = found["0000010_7"]
    assert row["json"]["caption"] == "a cat" and row["json"]["clip_sim_dir"] == 0.25
    with Image.open(dataset / "0000010/7_1.jpg") as picture:
        assert np.array_equal(np.array(row["1.jpg"]), np.array(picture))


@pytest.mark.parametrize("name", ["../0000001_1.0.jpg", "/0000001.json", "0000001/x.json", "0000001_1.2.jpg"])
def test_other_members_are_refused(name: str, tmp_path: Path):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(UserError, match="expected pairs of pictures and their prompts, got"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pairs_without_metadata_are_packed_too(dataset: Path, tmp_path: Path):
    (dataset / "0000002/metadata.jsonl").unlink()
    pack([dataset / "0000002"], tmp_path / "a.tar")
    unpack(tmp_path / "a.tar", tmp_path / "out")
    expected = {name: digest for name, digest in content(dataset).items() if name.startswith("0000002")}
    assert expected.items() <= content(tmp_path / "out").items() and len(expected) == 3
    (dataset / "0000010/7_1.jpg").unlink()
    with pytest.raises(UserError, match="cannot pack .*7_1.jpg: No such file"):
        pack(folders_of(dataset), tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


@pytest.mark.parametrize("text", [b"{x", b"[]"])
def test_members_that_are_no_prompts(text: bytes, tmp_path: Path):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        member = tarfile.TarInfo("0000001.json")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    with pytest.raises(UserError, match="cannot unpack "):
        unpack(tmp_path / "bad.tar", tmp_path / "out")


def test_pairs_of_a_prompt_that_are_apart(dataset: Path, tmp_path: Path):
    pack(folders_of(dataset), tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar, tarfile.open(tmp_path / "b.tar", "w") as other:
        members = sorted(tar.getmembers(), key=lambda member: member.name.endswith("json"))
        for member in members:
            other.addfile(member, tar.extractfile(member))
    with pytest.raises(UserError, match="expected the pairs of prompt 0000002 one after another"):
        unpack(tmp_path / "b.tar", tmp_path / "out")


def test_a_shard_that_was_cut_off(dataset: Path, tmp_path: Path):
    """What came before is there in full; the rest is one line."""
    pack(folders_of(dataset), tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot unpack .*cut.tar: "):
        unpack(tmp_path / "cut.tar", tmp_path / "out")
    made = content(tmp_path / "out")
    assert made and made.items() <= content(dataset).items()
