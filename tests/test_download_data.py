"""scripts/download_data.sh against a real server that goes wrong."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

import pytest

from file_server import (
    HTML,
    HUB_PAIRS,
    Fault,
    copy_scripts,
    hub_parquet,
    names,
    run,
    script,
    serving,
    start,
    wait_until,
)
from ldm.data.formats import read_examples
from ldm.util import UserError


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_scripts(tmp_path)


@pytest.mark.parametrize(
    ("words", "got"),
    [
        (["a", "b"], "got a and b"),
        (["../a"], "got '../a'"),
        (["--jobs", "0"], "got 0"),
        (["--jobs"], "got nothing"),
        (["--parquet", "random-sample-dataset"], "got random-sample-dataset"),
    ],
)
def test_wrong_usage_of_download_data(checkout: Path, words: list[str], got: str) -> None:
    said = run(script("download_data", *words), checkout, None, code=2)
    assert got in said and said.count("\n") == 1 and names(checkout) == ["scripts"]


PROMPTS = {
    f"{name}-prompts.jsonl": b'{"input": "a", "edit": "b", "output": "c"}\n' * 9
    for name in ("gpt-generated", "human-written")
}


def archive(*folders: str) -> bytes:
    """A zip file of prompt folders with one pair each; the pictures cannot be compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for folder in folders:
            written.writestr(f"{folder}/prompt.json", '{"input": "a", "edit": "b", "output": "c"}')
            for side in (0, 1):
                written.writestr(f"{folder}/7_{side}.jpg", random.Random(folder).randbytes(5000))
    return file.getvalue()


def dataset(host: str = "/one") -> dict[str, bytes]:
    """What a host of the published data has, with three archives of two examples."""
    folders = [f"{number:07}" for number in range(6)]
    files = {f"{host}/{name}": content for name, content in PROMPTS.items()}
    for shard in range(3):
        files[f"{host}/pairs/shard-{shard:02}.zip"] = archive(*folders[2 * shard : 2 * shard + 2])
    files[f"{host}/pairs/seeds.json"] = json.dumps([[folder, ["7"]] for folder in folders]).encode()
    return files


def test_prompts(checkout: Path) -> None:
    with serving(dataset("/two"), {"/one/gpt-generated-prompts.jsonl": [Fault(body=HTML)]}) as server:
        run(script("download_data"), checkout, server)
    assert {file.name: file.read_bytes() for file in (checkout / "data").iterdir()} == PROMPTS


def test_a_dataset(checkout: Path) -> None:
    faults = {
        "/one/pairs/": [Fault(status=404)],
        "/one/pairs/shard-01.zip": [Fault(cut=5000), Fault()],
        "/two/pairs/shard-02.zip": [Fault(body=HTML)],
        "/one/pairs/shard-02.zip": [Fault(body=dataset()["/one/pairs/shard-02.zip"][:-9])],
    }
    files = dataset() | dataset("/two")
    with serving(files, faults) as server:
        said = run(script("download_data", "--jobs", "2", "pairs"), checkout, server, code=1)
        folder = checkout / "data/pairs"
        assert said.splitlines()[-1] == (
            "error: data/pairs: failed: shard-02.zip; the same command again goes on"
        )
        assert names(folder) == [".unzipped", "0000000", "0000001", "0000002", "0000003"]
        with pytest.raises(UserError):
            read_examples(folder)
        faults = server.faults.pop("/two/pairs/shard-02.zip")
        server.asked.clear()
        said = run(script("download_data", "pairs"), checkout, server)
        assert {path for path, _ in server.asked} == {
            "/one/pairs/",
            "/two/pairs/",
            "/one/pairs/shard-02.zip",
            "/two/pairs/shard-02.zip",
            "/one/pairs/seeds.json",
        }
        server.asked.clear()
        run(script("download_data", "pairs"), checkout, server)  # everything is there
        assert {path for path, _ in server.asked} == {"/one/pairs/", "/two/pairs/"}
    assert names(folder) == [".unzipped", *(f"{number:07}" for number in range(6)), "seeds.json"]
    for example in read_examples(folder):
        assert sorted(file.name for file in example.folder.iterdir()) == ["7_0.jpg", "7_1.jpg", "prompt.json"]
        assert (example.folder / "7_1.jpg").read_bytes() == random.Random(example.folder.name).randbytes(5000)


def test_a_dataset_stopped_half_way(checkout: Path) -> None:
    second = "/one/pairs/shard-01.zip"
    with serving(dataset(), {second: [Fault(rate=9000), Fault()]}) as server:
        command, folder = script("download_data", "--jobs", "2", "pairs"), checkout / "data/pairs"
        part = folder / "shard-01.zip.part"
        with start(command, checkout, server, STALL_SECONDS="9") as process:
            wait_until(lambda: part.exists() and part.stat().st_size > 0 and (folder / "0000001").exists())
            process.terminate()
            assert process.wait(timeout=5) == 143
        assert not (folder / "shard-01.zip").exists() and not (folder / "seeds.json").exists()
        run(command, checkout, server)
        assert [path for path, _ in server.asked].count("/one/pairs/shard-00.zip") == 1
        assert [start > 0 for path, start in server.asked if path == second] == [False, True]
    assert len(read_examples(folder)) == 6


def test_no_dataset_of_that_name(checkout: Path) -> None:
    with serving(dataset()) as server:
        said = run(script("download_data", "others"), checkout, server, code=1)
    assert said.splitlines()[-1] == "error: the list of others could not be had; please try again"
    assert names(checkout / "data") == sorted(PROMPTS)


def test_too_little_disk_for_a_dataset(checkout: Path) -> None:
    with serving(dataset(), declared={"/one/pairs/shard-01.zip": 10**17}) as server:
        said = run(script("download_data", "--jobs", "1", "pairs"), checkout, server, code=1)
        assert not any(path.endswith(".zip") for path, _ in server.asked)
    assert said.splitlines()[-1].startswith("error: expected 200.0 PB of free disk in data/pairs, got ")


def test_parquet(checkout: Path) -> None:
    files = hub_parquet("/two")
    contents = {path.rpartition("/")[2]: content for path, content in files.items() if "resolve" in path}
    last = next(path for path in files if path.endswith("1f2e.parquet") and "00001" in path)
    plan = {f"/one/api/datasets/{HUB_PAIRS}/tree/main/data": [Fault(body=HTML)], last: [Fault(status=404)]}
    folder = checkout / "data/instructpix2pix-clip-filtered"
    with serving(files, plan) as server:
        said = run(script("download_data", "--parquet"), checkout, server, code=1, DATA_HOSTS="")
        assert said.splitlines()[-1].startswith(
            "error: instructpix2pix-clip-filtered: failed: train-00001-of-"
        )
        assert len(names(folder)) == 1
        server.faults.clear()
        run(script("download_data", "--parquet", "clip-filtered-dataset"), checkout, server)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents
