"""ldm.util: building objects from configs, and how programs start and end."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ldm.commands import COMMANDS
from ldm.files import ROOT
from ldm.modules.losses import ReconstructionKL
from ldm.util import EXTRAS, UserError, get_obj_from_str, instantiate_from_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOSS = "ldm.modules.losses.ReconstructionKL"


def test_objects_by_their_path() -> None:
    assert get_obj_from_str(LOSS) is ReconstructionKL
    assert get_obj_from_str("os.path.join")("a", "b") == "a/b"


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_building(wrap: Any) -> None:
    assert instantiate_from_config(wrap({"target": LOSS, "params": {"kl_weight": 0.5}})).kl_weight == 0.5
    assert instantiate_from_config(wrap({"target": LOSS})).kl_weight == 1e-4
    assert instantiate_from_config(wrap({"target": LOSS, "params": None})).kl_weight == 1e-4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "expected a mapping with 'target' and 'params', got None"),
        ({}, "expected a mapping with 'target' and 'params'"),
        ({"params": {}}, "expected a mapping with 'target' and 'params'"),
        ({"target": None}, "expected 'package.module.Name', got None"),
        ({"target": "Identity"}, "expected 'package.module.Name', got 'Identity'"),
        ({"target": ".losses.Loss"}, "expected 'package.module.Name', got '.losses.Loss'"),
        ({"target": "os; import sys.x"}, "expected 'package.module.Name', got 'os; import sys.x'"),
        ({"target": "nowhere.losses.Loss"}, "there is no module 'nowhere'"),
        ({"target": "ldm.nothing.Loss"}, "there is no module 'ldm.nothing'"),
        ({"target": "ldm.util.Nothing"}, "ldm.util has no 'Nothing'"),
        ({"target": LOSS, "params": {"kl": 1, "b": 2}}, f"config of {LOSS}: unknown parameter b, kl"),
        ({"target": LOSS, "params": [1]}, "expected params by name, got"),
        (
            {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4}},
            "parameter ddconfig, lossconfig is missing",
        ),
    ],
)
def test_mistakes_in_a_config_are_one_line(config: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        instantiate_from_config(config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_module_that_lacks_a_dependency_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "there is no module needs_more": the module is there, what it imports is not."""
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        get_obj_from_str("needs_more.Thing")


@pytest.mark.parametrize(
    ("body", "code", "stderr"),
    [
        ("print('done')", 0, ""),
        ("raise UserError('expected a file, got a folder')", 2, "error: expected a file, got a folder\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("raise SystemExit(3)", 3, ""),
    ],
)
def test_how_programs_end(body: str, code: int, stderr: str) -> None:
    result = run_program(body)
    assert (result.returncode, result.stderr) == (code, stderr)


def test_bugs_keep_their_traceback() -> None:
    result = run_program("raise ValueError('not the fault of the user')")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback") and "not the fault of the user" in result.stderr


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        ("edit_app.py", "gradio", "app"),
        ("prompt_app.py MODEL --openai-base-url http://127.0.0.1:9/v1", "openai", "dataset"),
        ("main.py --base configs/avatars/edit.yaml --train", "pytorch_lightning", "train"),
        ("metrics/compute_metrics.py", "open_clip", "metrics"),
        ("metrics/compute_benchmark.py emu-edit --output x", "torchvision", "metrics"),
        ("dataset_creation/avatars/train_clip.py x --out x", "open_clip", "metrics"),
    ],
)
@pytest.mark.slow
def test_a_package_of_an_extra_that_is_not_installed(words: str, package: str, extra: str) -> None:
    program, *options = words.split()
    script = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = {[program, *options]}; "
        f"runpy.run_path({program!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 2, result.stderr
    expected = f"error: expected {package}: pip install -e '.[{extra}]'"
    assert result.stderr.splitlines()[-1] == expected


def test_the_extras_bring_what_they_are_named_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, extra in EXTRAS.items():
        brought = " ".join(project["optional-dependencies"][extra]).replace("-", "_")
        assert package.removesuffix("_client") in brought, (package, extra)


def run_program(body: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(
        f"""
        from ldm.util import UserError, run_main

        def main():
            {body}

        run_main(main)
        """
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_program_wait_without_a_busy_loop(given: str | None, expected: str):
    """The library of threads reads it when torch is imported: so it stands before, and only for programs."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = (
        "import os, sys; from ldm.util import run_main\n"
        "assert 'torch' not in sys.modules\n"
        "run_main(lambda: print(os.environ['OMP_WAIT_POLICY']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | ({"OMP_WAIT_POLICY": given} if given else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == expected


@pytest.mark.parametrize("word", sorted(COMMANDS.keys() - {"validate"}))  # which computes nothing
def test_no_program_imports_torch_before_it_starts(word: str):
    """What it sets for torch's threads comes too late otherwise."""
    program, _ = COMMANDS[word]
    code = f"import runpy, sys; runpy.run_path({program!r}, run_name='x'); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
