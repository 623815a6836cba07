"""Every command of README.md runs, as it stands or shortened, and READMEs in other languages show the same.

`ROWS` says how each is run. A command that no row is for, and a row that no command needs, fail.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from omegaconf import OmegaConf

import faulty_server
import file_server
from dataset_creation.text.instructions import read_examples
from language_model_server import language_model_server
from ldm.util import instantiate_from_config
from readme_commands import (
    IP2P_FILE,
    ROOT,
    SD_FILE,
    VAE_FILE,
    Command,
    code_blocks,
    commands,
    download_hosts,
    inside,
    page,
    run_program,
    run_shell,
    tuning_server,
    write_workplace,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

README = (ROOT / "README.md").read_text()
COMMANDS = commands(README)
KEY = "sk-of-the-reader"
ADDRESS = "http://127.0.0.1:7860"  # of the page in the README

CLIP = "--clip-model clip.json --clip-weights clip.safetensors"
KEEP_ALL = "--clip-threshold 0 --clip-dir-threshold 0 --clip-img-threshold 0"
ONE_STEP = "--max_steps 1 data.params.batch_size=1"
VALIDATED = f"{ONE_STEP} lightning.trainer.val_check_interval=1"
NOT_VALIDATED = f"{ONE_STEP} lightning.trainer.limit_val_batches=0"
FEW = "data.params.train.params.stop=-8 data.params.validation.params.start=-8"
SMALL = "--base configs/train.yaml small.yaml data.params.num_workers=0"
FIRST_EDIT = f"--limit 1 --steps 1 --dino-weights dino.safetensors {CLIP}"
EMBEDDED = "--config configs/avatars/edit.yaml"

# --- Ways to run a command, in the folder of `workplace`; `more` are words that the table adds --------------


def program(folder: Path, command: Command, more: list[str]) -> None:
    """In this process, to its end."""
    run_program(folder, [*command.words, *more])


def parsed(folder: Path, command: Command, more: list[str]) -> None:
    """Its command line is read by its own parser, and no more."""
    run_program(folder, command.words, parse_only=True)


def shell(folder: Path, command: Command, more: list[str]) -> None:
    run_shell(folder, shlex.join([*command.words, *more]))


def served(folder: Path, command: Command, more: list[str]) -> None:
    """Started, asked for its page and for what only visitors with a password get, and stopped."""
    with page(folder, [*command.words, *more]) as url:
        with urllib.request.urlopen(url) as answer:
            assert b"<html" in answer.read()
        if "--auth" in command.words:
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(url + "config")


def download(folder: Path, command: Command, more: list[str]) -> None:
    place = folder / "-".join(Path(word).stem.strip("-") for word in command.words[1:])
    place.mkdir()
    with download_hosts(place) as server:
        run_shell(place, command.text, file_server.environment(server))


def asked_of_openai(folder: Path, command: Command, more: list[str]) -> None:
    """With a server that answers by rule in OpenAI's place."""
    with faulty_server.serving() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", server.url)
        program(folder, command, more)
        assert server.asked and {asked.key for asked in server.asked} == {KEY}


def asked_of_own_server(folder: Path, command: Command, more: list[str]) -> None:
    """With a language model on this machine."""
    with language_model_server(folder / "model.log", KEY) as url:
        program(folder, command, [*more, "--openai-base-url", url])


def packages(folder: Path, command: Command, more: list[str]) -> None:
    """Nothing is installed: what is named must be here in that version, and extras must exist."""
    shell(folder, command, ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation"])
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = [extra for found in re.findall(r"\[(.*)\]", command.text) for extra in found.split(",")]
    assert set(extras) <= set(known)


def as_here(folder: Path, command: Command, more: list[str]) -> None:
    """Each line of PowerShell as it is written here, by the row for that."""
    text = command.text.replace("py -3", "python3").replace(".venv\\Scripts\\python -m pip", "pip")
    text = text.replace(".venv\\Scripts\\", "")
    assert "\\" not in text
    for line in commands(f"```\n{text}\n```\n"):
        row = row_of(line)
        row.way(folder, line, shlex.split(row.more))


def conda(folder: Path, command: Command, more: list[str]) -> None:
    """What is made from the file has the name that is activated."""
    environment = OmegaConf.load(folder / "environment.yaml")
    assert command.words[-1] in ("environment.yaml", environment.name)


def npm(folder: Path, command: Command, more: list[str]) -> None:
    """``npm ci`` refuses a lock of other packages than those of package.json."""
    place = folder / command.words[-1]
    lock = json.loads((place / "package-lock.json").read_text())["packages"][""]
    assert lock["dependencies"] == json.loads((place / "package.json").read_text())["dependencies"]


def exported(folder: Path, command: Command, more: list[str]) -> None:
    """`workplace` has done it."""
    assert os.environ[command.words[1].partition("=")[0]] == KEY


def execute(folder: Path, code: str) -> dict[str, Any]:
    """The names that a snippet leaves."""
    names: dict[str, Any] = {}
    with inside(folder):
        exec(compile(code, "README", "exec"), names)
    return names


def edited_in_python(folder: Path, command: Command, more: list[str]) -> None:
    assert max(execute(folder, command.text)["edited"].size) == 64


def asked_of_the_page(folder: Path, command: Command, more: list[str]) -> None:
    with page(folder, ["python", "edit_app.py", *EMBEDDED.split()]) as url:
        assert ADDRESS in command.text
        names = execute(folder, command.text.replace(ADDRESS, url))
    Path(names["path"]).unlink()  # the client keeps what it is given among the temporary files
    assert names["settings"]["steps"] == 20


def tuned(folder: Path, command: Command, more: list[str]) -> None:
    with tuning_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", server.url)
        execute(folder, command.text)
    assert (folder / "data/tune.jsonl").read_bytes() in server.posted["/v1/files"]
    assert json.loads(server.posted["/v1/fine_tuning/jobs"])["training_file"] == "file-1"


def mixed(folder: Path, command: Command, more: list[str]) -> None:
    """Examples of both datasets come, three to one."""
    with inside(folder):
        data = instantiate_from_config(OmegaConf.create(command.text).train)
        shapes = {data[i]["edited"].shape for i in range(8)}
    assert shapes == {(3, 256, 256)} and sorted(data.sources[:8]) == [0] * 6 + [1] * 2


def triple(folder: Path, command: Command, more: list[str]) -> None:
    """Read as an example for a language model."""
    file = folder / "triple.jsonl"
    file.write_text(command.text)
    (found,) = read_examples(file)
    assert found.edit == "make it a dog"


# --- The table ----------------------------------------------------------------------------------------------

Way = Callable[[Path, Command, list[str]], None]


@dataclass(frozen=True)
class Row:
    """How a command is run.

    Attributes:
        words: that it has among its own; of several rows that fit, the first is meant.
        way: what runs it.
        more: words that are added.
        leaves: files that it writes.
        reason: why it does not run as it stands.
    """

    words: str
    way: Way
    more: str = ""
    leaves: str = ""
    reason: str = ""


ROWS = (
    Row("Scripts", as_here, leaves="imgs/output.jpg", reason="Windows"),
    Row("edit_cli.py --help", program),
    Row("edit_cli.py --gif", program, "--steps 5", "imgs/output.gif imgs/output.jpg", "time"),
    Row("edit_cli.py --surprise-me", program, "--steps 5", "imgs/output.jpg imgs/output-5.jpg", "time"),
    Row("edit_cli.py --ckpt", program, "--steps 5", "imgs/output.jpg", "time"),
    Row("edit_cli.py imgs/output.jpg", program, leaves="imgs/output.jpg"),
    Row("edit_cli.py imgs/output.png", program, leaves="imgs/output.png"),
    Row("edit_cli.py edited.jpg", program, leaves="edited.jpg"),
    Row("ip2p edit", shell, "--steps 5", "edited.jpg", "time"),
    Row("edit_app.py --auth", served, EMBEDDED, reason="weights"),
    Row("edit_app.py", served, EMBEDDED, reason="weights"),
    Row("main.py configs/avatars/decoder.yaml", program, f"{VALIDATED} {FEW}",
        "logs/autoencoder_decoder/checkpoints/last.ckpt", "time"),
    Row("main.py configs/avatars/autoencoder.yaml", program, f"{VALIDATED} {FEW}",
        "logs/autoencoder_avatars/checkpoints/last.ckpt", "time"),
    Row("main.py configs/avatars/edit.yaml avatars", program, NOT_VALIDATED,
        "logs/edit_avatars/checkpoints/last.ckpt", "time"),
    Row("main.py configs/avatars/edit.yaml mine", program, VALIDATED, "logs/edit_mine/checkpoints/last.ckpt",
        "time"),
    Row("main.py configs/train.yaml", program, f"{NOT_VALIDATED} {SMALL} --gpus ''",
        "logs/train_default/checkpoints/last.ckpt", "GPU"),
    Row("tensorboard", shell, "--inspect", reason="endless"),
    Row("scripts/convert_checkpoint.py --vae-ckpt", program, leaves="checkpoints/avatars.safetensors"),
    Row("scripts/convert_checkpoint.py data/avatars-diffusers/", program,
        leaves="data/avatars-diffusers/model_index.json"),
    Row("dataset_creation/validate_dataset.py", program, leaves="sheet.jpg"),
    Row("dataset_creation/cache_latents.py", program, leaves="data/avatars/train/latents/index.safetensors"),
    Row("dataset_creation/avatars/build.py", parsed, reason="Node"),
    Row("dataset_creation/generate_txt_dataset.py --openai-base-url", asked_of_own_server,
        "--num-samples 1 --shots 1", "data/triples-qwen.jsonl", "time"),
    Row("dataset_creation/generate_txt_dataset.py", asked_of_openai, leaves="triples.jsonl"),
    Row("dataset_creation/prepare_for_gpt.py", program, leaves="data/tune.jsonl"),
    Row("prompt_app.py", served),
    Row("dataset_creation/generate_img_dataset.py", program,
        f"--config text.yaml --resolution 64 --steps 2 --n-samples 2 {CLIP} {KEEP_ALL}",
        "data/my-dataset/report.json", "weights"),
    Row("dataset_creation/prepare_dataset.py", program, leaves="data/my-dataset/seeds.json"),
    Row("metrics/compute_metrics.py sdedit", program,
        f"--config text.yaml --ckpt text.safetensors --resolution 64 --steps 2 --strengths 0.5 1 {CLIP}",
        "analysis/sdedit/plot.pdf", "weights"),
    Row("metrics/compute_metrics.py", program, f"--config small.yaml --steps 1 --scales-image 1 2 {CLIP}",
        "analysis/ours/plot.pdf", "weights"),
    Row("metrics/plot_metrics.py", program, leaves="figure.pdf"),
    Row("metrics/compute_benchmark.py magicbrush", program, FIRST_EDIT, "results/magicbrush/results.json",
        "weights"),
    Row("metrics/compute_benchmark.py emu-edit", program, FIRST_EDIT, "results/emu-edit/results.json",
        "weights"),
    Row("benchmarks/embedded_model.py", program, "--data data/avatars --sets style --limit 1 --steps 1",
        reason="time"),
    Row("benchmarks/paper_in_miniature.py", program, "--dry-run", reason="hours"),
    Row("benchmarks/train_step.py cuda", parsed, reason="GPU"),
    Row("benchmarks/train_step.py", parsed, reason="hours"),
    Row("benchmarks/pair_generation.py", parsed, reason="GPU"),
    Row("scripts/download_checkpoints.sh", download, leaves=f"download_checkpoints/{IP2P_FILE}"),
    Row("scripts/download_pretrained_sd.sh", download,
        leaves=f"download_pretrained_sd/{SD_FILE} download_pretrained_sd/{VAE_FILE}"),
    Row("scripts/download_data.sh clip-filtered-dataset", download,
        leaves="download_data-clip-filtered-dataset/data/clip-filtered-dataset/seeds.json"),
    Row("scripts/download_data.sh --parquet", download,
        leaves="download_data-parquet/data/instructpix2pix-clip-filtered"),
    Row("scripts/download_data.sh", download, leaves="download_data/data/human-written-prompts.jsonl"),
    Row("a cat on sofa", triple),
    Row("pytest", shell, "--version", reason="hours"),
    Row("make", shell, "-n", reason="network"),
    Row("venv", shell, "--without-pip", ".venv/bin/activate", "time"),
    Row("pip", packages, reason="network"),
    Row("conda", conda, reason="network"),
    Row("npm", npm, reason="network"),
    Row("export", exported, reason="key"),
    Row(".", shell),
    Row("ImageEditor", edited_in_python),
    Row("gradio_client", asked_of_the_page, reason="port"),
    Row("fine_tuning", tuned),
    Row("MixedDataset", mixed),
)  # fmt: skip
# Ways to run something else than the command as it stands.
CHANGED = (parsed, as_here, packages, conda, npm, exported, asked_of_own_server, asked_of_the_page)


def row_of(command: Command) -> Row:
    """The row that is for a command."""
    for row in ROWS:
        if set(row.words.split()) <= set(command.words):
            return row
    raise AssertionError(f"no row says how to run: {command.text}")


# --- Tests --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the README's commands read; no way to the hub, and what they export exported."""
    folder = tmp_path_factory.mktemp("readme")
    write_workplace(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        for command in COMMANDS:
            if command.words[0] == "export":
                patch.setenv(command.words[1].partition("=")[0], KEY)
        yield folder
    shutil.rmtree(folder)  # a gigabyte of checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.text[:90])
def test_command(workplace: Path, command: Command) -> None:
    row = row_of(command)
    marker = workplace / "marker"
    marker.touch()
    row.way(workplace, command, shlex.split(row.more))
    for name in row.leaves.split():
        assert (workplace / name).stat().st_mtime_ns >= marker.stat().st_mtime_ns, f"{name} is not new"


def test_every_row_is_needed() -> None:
    assert set(ROWS) == {row_of(command) for command in COMMANDS}
    for row in ROWS:  # and says why, where it is not run as it stands
        assert bool(row.reason) == bool(row.more or row.way in CHANGED), row


@pytest.mark.parametrize("file", sorted(ROOT.glob("README*.md")), ids=lambda file: file.name)
def test_every_language_shows_the_same_code(file: Path) -> None:
    assert code_blocks(file.read_text()) == code_blocks(README)


def test_reading_a_readme() -> None:
    text = (
        "Say `make x`, `a b`, `python a.py\n--c`, `b/a.py --d` or `a.py --e`.\n\n"
        '```\nmake x  # a comment\n\npython a.py --f "a b" \\\n    --g   # more\ncd y && . z\n```\n'
        "```python\n# a comment\nx = 1  # another\n```\n```text\nmade\n```\nAnd `make z`.\n"
    )
    found = ["make x", "python a.py --c", "python b/a.py --d", 'python a.py --f "a b" --g', "cd y", ". z"]
    assert [command.text for command in commands(text)] == [*found, "x = 1", "make z"]
    assert code_blocks(text.replace("# more", "# 他")) == code_blocks(text)
    assert code_blocks(text.replace("--g", "--h")) != code_blocks(text)
    assert code_blocks(text.replace("```python", "```")) != code_blocks(text)
