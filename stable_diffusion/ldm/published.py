"""The published weights, prompts and data sets, fetched into the current folder, which is the checkout."""

from __future__ import annotations

import os
import re
import threading
import zipfile
import zlib
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name

from ldm.transfer import (
    Busy,
    Failed,
    Remote,
    amount,
    fetch,
    need_space,
    persist,
    read_page,
    remote_size,
    say,
    seconds,
)

SD = "stable_diffusion/models/ldm/stable-diffusion-v1"
# Repository on the hub, file without its suffix, bytes and SHA-256 by suffix.
CHECKPOINTS = (
    (
        "timbrooks/instruct-pix2pix",
        "checkpoints/instruct-pix2pix-00-22000",
        {
            ".safetensors": (7703416451, "fbc31a67aab29ad38eef622a252d3fa4b0a81d4a4dc65da416cf45b13aa67688"),
            ".ckpt": (7703927910, "ffd280ddcfc8234e4d28b93641cb83169cebcb4d70998df9ee2eabb4d705374a"),
        },
    ),
)
PRETRAINED_SD = (
    (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        f"{SD}/v1-5-pruned-emaonly",
        {
            ".safetensors": (4265146304, "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"),
            ".ckpt": (4265380512, "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516"),
        },
    ),
    (
        "stabilityai/sd-vae-ft-mse-original",
        f"{SD}/vae-ft-mse-840000-ema-pruned",
        {
            ".safetensors": (334641190, "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75"),
            ".ckpt": (334695179, "c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab"),
        },
    ),
)
PARQUET = "timbrooks/instructpix2pix-clip-filtered"
DATA_HOST = "https://instruct-pix2pix.eecs.berkeley.edu"
PROMPTS = ("gpt-generated-prompts.jsonl", "human-written-prompts.jsonl")
Weights = tuple[tuple[str, str, dict[str, tuple[int, str]]], ...]


def hub_file(file: Path, hub: str, name: str, size: int, sha256: str, kind: str = "model") -> Remote:
    """A file of a repository on the hub."""
    url = hf_hub_url(hub, name, repo_type=kind)
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub, repo_type=kind) / "blobs"
    return Remote(url, file, size, sha256, cache / sha256)


def fetch_weights(weights: Weights, suffix: str) -> None:
    for hub, stem, published in weights:
        file = Path(stem + suffix)
        fetch(hub_file(file, hub, file.name, *published[suffix]))


def listed_parquet() -> list[Remote]:
    """The parquet files that the hub lists, with size and SHA-256."""

    def ask() -> list[Remote]:
        try:
            info = HfApi(token=False).dataset_info(
                PARQUET, files_metadata=True, timeout=seconds("STALL_SECONDS", 60)
            )
        except HfHubHTTPError as error:
            status = error.response.status_code
            raise (Busy if status >= 500 or status == 429 else Failed)(f"the list: HTTP {status}") from error
        except (OfflineModeIsEnabled, ValueError) as error:  # JSON's errors are of the latter
            raise Failed(f"the list: {type(error).__name__}") from error
        folder = Path("data") / PARQUET.rpartition("/")[2]
        return [
            hub_file(
                folder / PurePosixPath(entry.rfilename).name,
                PARQUET,
                entry.rfilename,
                entry.lfs.size,
                entry.lfs.sha256,
                "dataset",
            )
            for entry in info.siblings or ()
            if entry.rfilename.endswith(".parquet") and entry.lfs
        ]

    found = persist(PARQUET, ask)
    if not found:
        raise Failed(f"expected parquet files and their SHA-256 in the list of {PARQUET}, got none")
    return found


def fetch_parquet() -> None:
    """Download every parquet file that can be had, then say which could not."""
    files, failed = listed_parquet(), []
    folder = files[0].file.parent
    folder.mkdir(parents=True, exist_ok=True)
    here = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".parquet", ".part"))
    rest = max(0, sum(file.size or 0 for file in files) - here)
    say(f"{folder}: {len(files)} files, {amount(rest)} to download")
    need_space(folder, rest)
    for count, file in enumerate(files, 1):
        try:
            fetch(file)
        except Failed as error:
            say(f"error: {error}")
            failed.append(file.file.name)
        say(f"{folder}: {count} of {len(files)} files")
    if failed:
        raise Failed(f"{folder}: failed: {' '.join(failed)}")


class Links(HTMLParser):
    """Names of the zip and JSON files that a page of a folder links to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs).get("href") or ""
        if tag == "a" and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.(zip|json)", link):
            self.names.add(link)


def fetch_data(name: str | None, jobs: int) -> None:
    """Download the prompts and, if it is named, a data set."""
    host = (os.environ.get("DATA_HOST") or DATA_HOST).rstrip("/")
    for prompts in PROMPTS:
        fetch(Remote(f"{host}/{prompts}", Path("data") / prompts))
    if name:
        fetch_archives(host, name, jobs)


def fetch_archives(host: str, name: str, jobs: int) -> None:
    """Download and unzip the archives of a data set, then its JSON files."""
    folder, address = Path("data") / name, f"{host}/{name}"
    links = Links(read_page(f"{address}/")).names
    archives = sorted(link for link in links if link.endswith(".zip"))
    if not archives:
        raise Failed(f"expected archives in the list of {name}, got none")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".unzipped").touch()
    done = set((folder / ".unzipped").read_text().split())
    for archive in done.intersection(archives):
        (folder / archive).unlink(missing_ok=True)
    todo = [archive for archive in archives if archive not in done]
    sizes = [remote_size(f"{address}/{archive}") for archive in todo]
    say(f"{folder}: {len(archives)} archives, {amount(sum(sizes))} to download and unzip")
    # Unzipped pictures take what the archives do, and some archives are there beside them.
    need_space(folder, sum(sizes) + jobs * max(sizes, default=0))
    stop = threading.Event()
    unpacked: list[Future[None]] = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for archive in todo:
                while len(running := [one for one in unpacked if not one.done()]) >= jobs:
                    wait(running, return_when=FIRST_COMPLETED)
                try:
                    fetch(Remote(f"{address}/{archive}", folder / archive))
                except Failed as error:
                    say(f"error: {error}")
                else:
                    unpacked.append(pool.submit(unpack, folder / archive, stop))
            wait(unpacked)
        except BaseException:
            stop.set()
            raise
    for one in unpacked:
        one.result()
    done = set((folder / ".unzipped").read_text().split())
    if failed := [archive for archive in archives if archive not in done]:
        raise Failed(f"{folder}: failed: {' '.join(failed)}")
    for link in [*sorted(links - {*archives, "seeds.json"}), "seeds.json"]:
        fetch(Remote(f"{address}/{link}", folder / link))


def unpack(archive: Path, stop: threading.Event) -> None:
    """Unzip an archive where it lies, note it in .unzipped and remove it; one that is damaged is removed."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            if outside := [
                name for name in zipped.namelist() if {"", "..", "/"} & {*re.split(r"[\\/]", name)[:-1]}
            ]:
                raise ValueError(f"it would write {outside[0]!r}")
            need_space(archive.parent, sum(member.file_size for member in members))
            for member in members:
                if stop.is_set():
                    return
                zipped.extract(member, archive.parent)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        archive.unlink()
        say(f"error: {archive}: expected a whole zip file, got one that is damaged ({error}); it was removed")
    except (OSError, Failed) as error:
        say(f"error: {archive} could not be unzipped: {error}")
    else:
        with (archive.parent / ".unzipped").open("a") as record:
            record.write(f"{archive.name}\n")
        archive.unlink()
        say(f"{archive}: unzipped")
