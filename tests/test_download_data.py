"""scripts/download_data.sh against a real server that goes wrong."""

from __future__ import annotations

import io
import json
import random
import signal
import zipfile
from pathlib import Path

import pytest

from file_server import (
    HTML,
    HUB_PAIRS,
    ROOT,
    Fault,
    copy_scripts,
    hub_parquet,
    names,
    run,
    script,
    serving,
    start,
)
from hub_server import hub
from ldm.data.formats import read_examples
from ldm.downloads.published import Links
from ldm.util import UserError
from waiting import DEADLINE, wait_until

pytestmark = pytest.mark.slow  # its tests start the scripts


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_scripts(tmp_path)


@pytest.mark.parametrize(
    ("words", "got"),
    [
        (["a", "b"], "arguments: b"),
        (["../a"], "got '../a'"),
        (["--jobs", "0"], "got '0'"),
        (["--jobs"], "--jobs: expected one argument"),
        (["--parquet", "random-sample-dataset"], "got random-sample-dataset"),
    ],
)
def test_wrong_usage_of_download_data(words: list[str], got: str) -> None:
    said = run(script("download_data", *words), ROOT, None, code=2)
    assert got in said and said.count("\n") == 1


PROMPTS = {
    f"{name}-prompts.jsonl": b'{"input": "a", "edit": "b", "output": "c"}\n' * 9
    for name in ("gpt-generated", "human-written")
}
FOLDERS = [f"{number:07}" for number in range(6)]
WHOLE = [".unzipped", *FOLDERS, "seeds.json"]


def archive(*folders: str, more: str = "") -> bytes:
    """A zip file of prompt folders with one pair each; the pictures cannot be compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for folder in folders:
            written.writestr(f"{folder}/prompt.json", '{"input": "a", "edit": "b", "output": "c"}')
            for side in (0, 1):
                written.writestr(f"{folder}/7_{side}.jpg", random.Random(folder).randbytes(5000))
        if more:
            written.writestr(more, "x")
    return file.getvalue()


def dataset() -> dict[str, bytes]:
    """What the host of the published data has, with three archives of two examples."""
    files = {f"/{name}": content for name, content in PROMPTS.items()}
    for shard in range(3):
        files[f"/pairs/shard-{shard:02}.zip"] = archive(*FOLDERS[2 * shard : 2 * shard + 2])
    files["/pairs/seeds.json"] = json.dumps([[folder, ["7"]] for folder in FOLDERS]).encode()
    return files


def assert_whole(folder: Path) -> None:
    assert names(folder) == WHOLE
    for example in read_examples(folder):
        assert names(example.folder) == ["7_0.jpg", "7_1.jpg", "prompt.json"]
        assert (example.folder / "7_1.jpg").read_bytes() == random.Random(example.folder.name).randbytes(5000)


def test_prompts(checkout: Path) -> None:
    """A page in place of one is none; what stands there under its name is kept aside."""
    (checkout / "data").mkdir()
    (checkout / "data/human-written-prompts.jsonl").write_bytes(HTML)
    with serving(dataset(), {"/gpt-generated-prompts.jsonl": [Fault(body=HTML)]}) as server:
        said = run(script("download_data"), checkout, server, code=1)
        assert said.splitlines()[-1].endswith(
            "expected JSON, got 56 bytes that are not; the same command again goes on"
        )
        server.faults.clear()
        run(script("download_data"), checkout, server)
    got = {file.name: file.read_bytes() for file in (checkout / "data").iterdir()}
    assert got == PROMPTS | {"human-written-prompts.jsonl.bad": HTML}


def test_a_dataset(checkout: Path) -> None:
    damaged = bytearray(dataset()["/pairs/shard-02.zip"])
    damaged[4000] ^= 1  # within a picture: only its checksum tells
    faults = {
        "/pairs/shard-00.zip": [Fault(body=dataset()["/pairs/shard-00.zip"][:-9])],
        "/pairs/shard-01.zip": [Fault(cut=5000), Fault()],
        "/pairs/shard-02.zip": [Fault(body=bytes(damaged))],
    }
    folder = checkout / "data/pairs"
    with serving(dataset(), faults) as server:
        said = run(script("download_data", "--jobs", "2", "pairs"), checkout, server, code=1)
        assert said.splitlines()[-1] == (
            "error: data/pairs: failed: shard-00.zip shard-02.zip; the same command again goes on"
        )
        assert "expected a whole zip file, got no zip file" in said and "Bad CRC-32" in said
        assert (folder / ".unzipped").read_text() == "shard-01.zip\n"
        assert not (folder / "seeds.json").exists() and not list(folder.glob("*.zip*"))
        with pytest.raises(UserError):
            read_examples(folder)
        server.faults.clear()
        server.asked.clear()
        run(script("download_data", "pairs"), checkout, server)
        assert [path.rpartition("/")[2] for path, _ in server.asked] == [
            "",
            "shard-00.zip",
            "shard-02.zip",
            "seeds.json",
        ]
        server.asked.clear()
        run(script("download_data", "pairs"), checkout, server)  # everything is there
        assert server.asked == [("/pairs/", 0)]
    assert_whole(folder)


def test_every_state_that_a_kill_leaves(checkout: Path) -> None:
    """Every kind of file received and not checked; archives half unzipped, or unzipped and not removed."""
    folder, files = checkout / "data/pairs", dataset()
    folder.mkdir(parents=True)
    for name, content in PROMPTS.items():
        (checkout / "data" / f"{name}.part").write_bytes(content)
    (folder / "shard-00.zip.part").write_bytes(files["/pairs/shard-00.zip"])
    (folder / "shard-01.zip").write_bytes(files["/pairs/shard-01.zip"])
    (folder / FOLDERS[2]).mkdir()
    (folder / FOLDERS[2] / "7_1.jpg").write_bytes(b"half")
    (folder / "seeds.json.part").write_bytes(files["/pairs/seeds.json"])
    with zipfile.ZipFile(io.BytesIO(files["/pairs/shard-02.zip"])) as last:
        last.extractall(folder)
    (folder / "shard-02.zip").write_bytes(files["/pairs/shard-02.zip"])
    (folder / ".unzipped").write_text("shard-02.zip\n")
    with serving(files) as server:
        run(script("download_data", "pairs"), checkout, server)
        sizes = {f"/{name}": len(content) for name, content in PROMPTS.items()}
        for name in ("shard-00.zip", "seeds.json"):
            sizes[f"/pairs/{name}"] = len(files[f"/pairs/{name}"])
        assert dict(server.asked) == {"/pairs/": 0, **sizes}  # none but the list from its beginning
    assert names(checkout / "data") == sorted([*PROMPTS, "pairs"])
    assert_whole(folder)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_a_dataset_stopped_half_way(checkout: Path, number: signal.Signals, code: int) -> None:
    second = "/pairs/shard-01.zip"
    with serving(dataset(), {second: [Fault(rate=9000), Fault()]}) as server:
        command, folder = script("download_data", "--jobs", "2", "pairs"), checkout / "data/pairs"
        part, record = folder / "shard-01.zip.part", folder / ".unzipped"
        with start(command, checkout, server, STALL_SECONDS="9") as process:
            wait_until(
                lambda: part.exists() and part.stat().st_size > 0 and record.read_text() != "",
                "an archive and a half",
            )
            process.send_signal(number)
            assert process.wait(timeout=DEADLINE) == code
        assert not (folder / "shard-01.zip").exists() and not (folder / "seeds.json").exists()
        run(command, checkout, server)
        assert [path for path, _ in server.asked].count("/pairs/shard-00.zip") == 1
        assert [start > 0 for path, start in server.asked if path == second] == [False, True]
    assert_whole(folder)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "..\\outside"])
def test_no_archive_writes_outside(checkout: Path, name: str) -> None:
    files = dataset() | {"/pairs/shard-02.zip": archive(*FOLDERS[4:], more=name)}
    with serving(files) as server:
        said = run(script("download_data", "pairs"), checkout, server, code=1)
    assert "shard-02.zip: expected a whole zip file, got one that is damaged (it would write" in said
    assert not list(checkout.rglob("*outside*")) and not (checkout / "data/pairs" / FOLDERS[4]).exists()


def test_no_dataset_of_that_name(checkout: Path) -> None:
    with serving(dataset() | {"/none/readme.txt": b""}) as server:
        said = run(script("download_data", "others"), checkout, server, code=1)
        assert "/others/: HTTP 404" in said.splitlines()[-1]
        said = run(script("download_data", "none"), checkout, server, code=1)
        assert said.splitlines()[-1].startswith("error: expected archives in the list of none, got none")
    assert names(checkout / "data") == sorted(PROMPTS)


def test_links_of_a_page() -> None:
    page = """<html><a href="a-1.zip">x</a> <A class=y HREF='seeds.json'>x<a name="b.zip"><p href="c.zip">
    <a href="../d.zip"><a href="/e.zip"><a href="http://x/f.zip"><a href="g.zip?"><a href=".i.zip"><a href>"""
    assert Links(page).names == {"a-1.zip", "seeds.json"}


def test_too_little_disk_for_a_dataset(checkout: Path) -> None:
    with serving(dataset(), declared={"/pairs/shard-01.zip": 10**17}) as server:
        said = run(script("download_data", "--jobs", "1", "pairs"), checkout, server, code=1)
        assert not any(path.endswith(".zip") for path, _ in server.asked)
    assert said.splitlines()[-1].startswith("error: expected 200PB of free disk in data/pairs, got ")


def test_parquet(checkout: Path) -> None:
    """The list is asked for again; one file that fails keeps no other back."""
    files = hub_parquet()
    contents = {path.rpartition("/")[2]: content for path, content in files.items() if "resolve" in path}
    listed, first = f"/api/datasets/{HUB_PAIRS}", next(path for path in files if "00000" in path)
    folder = checkout / "data/instructpix2pix-clip-filtered"
    with serving(
        files, {listed: [Fault(status=500), Fault()], first: [Fault(cut=700), Fault(status=404)]}
    ) as server:
        said = run(script("download_data", "--parquet"), checkout, server, code=1, DATA_HOST="")
        assert said.splitlines()[-1].startswith(
            "error: data/instructpix2pix-clip-filtered: failed: train-00000-of-00002-1f2e.parquet;"
        )
        assert names(folder) == [
            "train-00000-of-00002-1f2e.parquet.part",
            "train-00001-of-00002-1f2e.parquet",
        ]
        server.faults = {listed: [Fault(body=HTML)]}
        said = run(script("download_data", "--parquet"), checkout, server, code=1)
        assert said.startswith("error: ") and said.count("\n") == 1
        server.faults.clear()
        run(script("download_data", "--parquet", "clip-filtered-dataset"), checkout, server)
        assert server.asked[-1] == (first, 700)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents


def test_parquet_from_a_hub(checkout: Path, tmp_path: Path) -> None:
    """Files that are no parquet are left; a part that is whole is checked and not asked for again."""
    folder, data = checkout / "data/instructpix2pix-clip-filtered", tmp_path / "hub" / HUB_PAIRS / "data"
    data.mkdir(parents=True)
    contents = {f"train-0000{n}-of-00002.parquet": random.Random(n).randbytes(9000) for n in range(2)}
    for name, content in (contents | {"README.md": b"x"}).items():
        (data / name).write_bytes(content)
    with hub(tmp_path / "hub") as server:
        run(script("download_data", "--parquet"), checkout, None, HF_ENDPOINT=server.url)
        for file in folder.iterdir():
            file.rename(f"{file}.part")
        run(script("download_data", "--parquet"), checkout, None, HF_ENDPOINT=server.url)
        assert server.ranges == ["", ""]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents
    said = run(script("download_data", "--parquet"), checkout, None, code=1, HF_HUB_OFFLINE="1")
    assert said.startswith("error: ") and said.count("\n") == 1
