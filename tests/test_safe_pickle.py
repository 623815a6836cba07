"""Pickled weights files: what they hold arrives, and nothing that they ask for runs."""

import builtins
import copyreg
import importlib
import os
import subprocess
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.util import UserError
from ldm.weights import pickled as safe_pickle
from ldm.weights.pickled import PickledWeights
from pickle_files import asks_for, refusal, save, text, zip_around

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool]


class Calls:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that malicious weights try to make."""
    return tmp_path / "marker"


@pytest.fixture
def trap(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package on the import path that leaves the marker when it is imported."""

    def make(package: str) -> None:
        folder = tmp_path / "traps" / package
        folder.mkdir(parents=True)
        code = f"open({str(marker)!r}, 'w').close()\nclass Thing:\n    def __setstate__(self, state): pass\n"
        for file in ("__init__.py", "inside.py"):
            (folder / file).write_text(code)
        # The trap works, in a process of its own:
        subprocess.run([sys.executable, "-c", f"import {package}.inside"], cwd=folder.parent, check=True)
        assert marker.exists()
        marker.unlink()
        monkeypatch.syspath_prepend(folder.parent)

    return make


# --- what weights need ---


@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor(tmp_path: Path, zipped: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = OrderedDict()
    for dtype in DTYPES:
        state[str(dtype)] = torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
    base = torch.randn(4, 6, generator=generator)
    state |= {
        "parameter": torch.nn.Parameter(base.clone()),
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "expanded": torch.ones(1, 1).expand(1000, 1000),
        "channels_last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }
    file = PickledWeights(save(state, tmp_path / "weights.ckpt", zipped))
    assert list(file.shapes) == list(state)
    for name, tensor in state.items():
        read = file.read(name)
        assert read.dtype == tensor.dtype and file.shapes[name] == tuple(read.shape) == tuple(tensor.shape)
        assert torch.equal(read.to(torch.complex128), tensor.detach().to(torch.complex128)), name
    assert (tmp_path / "weights.ckpt").stat().st_size < 1e5  # the expanded tensor is one number


@pytest.mark.parametrize("zipped", [True, False])
def test_tied_weights_stay_tied(tmp_path: Path, zipped: bool) -> None:
    weight = torch.randn(3)
    file = PickledWeights(save({"a": weight, "b": weight}, tmp_path / "weights.ckpt", zipped))
    a, b = file.read("a"), file.read("b")
    a[0] = 5
    assert b[0] == 5
    assert PickledWeights(tmp_path / "weights.ckpt").read("a")[0] == weight[0]  # the file is not written to


def test_module_state_dict_with_its_metadata(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    file = PickledWeights(save(layer.state_dict(), tmp_path / "weights.pt"))
    assert torch.equal(file.read("weight"), layer.weight) and torch.equal(file.read("bias"), layer.bias)


@pytest.mark.parametrize("zipped", [True, False])
def test_lightning_file_without_lightning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, marker: Path, trap: Callable[[str], None]
) -> None:
    """As v1-5-pruned-emaonly.ckpt: callback classes as keys, numpy scalars, objects with a state."""
    trap("pytorch_lightning")
    name = "pytorch_lightning.callbacks.model_checkpoint"
    with monkeypatch.context() as patch:
        module = types.ModuleType(name)
        callback = type("ModelCheckpoint", (), {"__module__": name})
        settings = type("Settings", (dict,), {"__module__": name})
        module.ModelCheckpoint, module.Settings = callback, settings
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, name, module)
        instance, options = callback(), settings(rate=1e-4)
        instance.best, options.note = np.float64(0.5), "kept beside the items"
        content = {
            "epoch": 3,
            "callbacks": {callback: {"best_model_score": np.float32(0.25), "seen": {1, 2}}, "x": instance},
            "hyper_parameters": options,
            "numpy": np.arange(5.0),
            "shape": torch.Size([1, 2]),
            "kinds": [int, str, object],  # as OmegaConf's lists name them: "long" and "unicode"
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "device": torch.device("cpu")}],
            "state_dict": OrderedDict(weight=torch.arange(4.0)),
        }
        path = save(content, tmp_path / "weights.ckpt", zipped)
    assert b"ModelCheckpoint" in path.read_bytes() and b"multiarray" in path.read_bytes()
    file = PickledWeights(path)
    assert file.shapes == {"weight": (4,)}
    assert file.read("weight").tolist() == [0, 1, 2, 3]
    assert not marker.exists()


def test_no_tensor_is_made_before_it_is_asked_for(tmp_path: Path) -> None:
    path = save({"a": torch.randn(1000), "b": torch.randn(10)}, tmp_path / "weights.ckpt")
    file = PickledWeights(path)
    file._starts["0"] = path.stat().st_size  # the place of "a" is wrong, and "b" does not care
    assert file.read("b").shape == (10,)
    with pytest.raises(UserError, match="tensor a is damaged"):
        file.read("a")


# --- what they do not need ---


def program(what: str, marker: Path) -> Any:
    """An object whose unpickling would make the marker."""
    touch = f"touch {marker}"
    python = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Calls(os.system, touch),
        "eval": Calls(builtins.eval, python),
        "exec": Calls(builtins.exec, python),
        "Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "open": Calls(builtins.open, str(marker), "w"),
        "getattr": Calls(builtins.getattr, "", "upper"),
        "import_module": Calls(importlib.import_module, "antigravity"),
    }[what]


PROGRAMS = ["system", "eval", "exec", "Popen", "open", "getattr", "import_module"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", PROGRAMS)
def test_callables_are_refused_by_name(tmp_path: Path, marker: Path, what: str, zipped: bool) -> None:
    evil = program(what, marker)
    nested = {"state_dict": {"weight": torch.ones(2), "nested": [1, [evil]]}}
    for content in (evil, nested, {"weight": torch.ones(2), evil: 1}):
        message = refusal(save(content, tmp_path / "evil.ckpt", zipped))
        assert message.startswith("refused to load") and f".{what}, which weights never need" in message
        assert not marker.exists()


def test_programs_would_have_run(tmp_path: Path, marker: Path) -> None:
    """The files of the test above are dangerous: an ordinary unpickler makes the marker."""
    for what in ("system", "eval", "exec", "open"):
        torch.load(save([program(what, marker)], tmp_path / "evil.ckpt"), weights_only=False)
        assert marker.exists()
        marker.unlink()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("collections", "OrderedDict.__init__.__globals__"),
        ("collections", "namedtuple"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_import_dotted_name"),
        ("torch", "serialization.os.system"),
        ("torch", "load"),
        ("torch", "jit.load"),
        ("torch", "FloatStorage.from_file"),
        ("torch.serialization", "load"),
        ("torch.hub", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.storage", "UntypedStorage.from_file"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("builtins", "__import__"),
        ("__builtin__", "eval"),
        ("builtins", "dict.__subclasses__"),
        ("numpy", "load"),
        ("numpy", "dtype.__class__"),
        ("_codecs", "encode.__self__"),
        ("_codecs", "decode"),
        ("ldm.weights.pickled", "RestrictedUnpickler"),
        ("pytorch_lightningx", "anything"),
        ("os", "system"),
    ],
)
def test_names_are_compared_as_a_whole(tmp_path: Path, module: str, name: str) -> None:
    message = refusal(zip_around(asks_for(module, name), tmp_path / "evil.ckpt"))
    assert f"it asks for {module}.{name}, which" in message


def test_old_global_instruction_is_refused(tmp_path: Path, marker: Path) -> None:
    for program in (f"cposix\nsystem\n(S'touch {marker}'\ntR.", f"(S'touch {marker}'\niposix\nsystem\n."):
        message = refusal(zip_around(program.encode(), tmp_path / "evil.ckpt"))
        assert "posix.system" in message and not marker.exists()


def test_extension_registry_is_no_way_around(tmp_path: Path, marker: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        program = b"\x80\x02\x82\xf0(" + text(f"touch {marker}") + b"tR."
        assert "os.system" in refusal(zip_around(program, tmp_path / "evil.ckpt"))
    finally:
        copyreg.remove_extension("os", "system", 240)
    assert not marker.exists()


def test_modules_are_not_imported(tmp_path: Path, marker: Path, trap: Callable[[str], None]) -> None:
    trap("evil_weights")
    for module in ("evil_weights", "evil_weights.inside"):
        # An instance of a class of that module, with a state that its __setstate__ would get.
        build = b")\x81}" + text("a") + b"K\x01sb."
        message = refusal(zip_around(asks_for(module, "Thing", build), tmp_path / "evil.ckpt"))
        assert f"it asks for {module}.Thing" in message
    assert not marker.exists() and not [name for name in sys.modules if name.startswith("evil_weights")]


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning", "omegaconf"])
def test_stand_ins_are_not_imported_either(
    tmp_path: Path, marker: Path, trap: Callable[[str], None], package: str
) -> None:
    """Names that are let through get a stand-in: whatever is done with it, nothing runs."""
    trap(package)
    before = set(sys.modules)
    calls = b"(" + text(f"touch {marker}") + b"tR"  # REDUCE: call it with a string
    builds = b"}" + text("a") + b"K\x01sb"  # BUILD: hand it a state
    rest = b"0}" + text("weight") + b"K\x01s."
    for use in (calls, builds, calls + builds, b")\x81" + builds, calls + b"(K\x01e", calls + b"K\x01a"):
        for name in ("Thing", "inside.Thing", "os.system", "__builtins__"):
            path = zip_around(asks_for(f"{package}.inside", name, use + rest), tmp_path / "weights.ckpt")
            assert "expected named weights, got weight" in refusal(path)  # read to its end
    assert not marker.exists() and set(sys.modules) == before


def test_a_file_cannot_change_this_reader(tmp_path: Path) -> None:
    """BUILD sets attributes: on names that a file may ask for it must not outlive the file."""
    state = b"N}" + text("__defaults__") + text("x") + b"s" + text("__call__") + text("x") + b"s\x86b."
    known = [("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"), ("torch", "float32")]
    known += [("collections", "OrderedDict"), ("numpy", "dtype"), ("torch.storage", "UntypedStorage")]
    before = {name: dict(vars(getattr(safe_pickle, name))) for name in ("Inert", "StorageType")}
    for module, name in known:
        refusal(zip_around(asks_for(module, name, state), tmp_path / "evil.ckpt"))
    assert before == {name: dict(vars(getattr(safe_pickle, name))) for name in before}
    assert safe_pickle._entry.__defaults__ is None and not vars(safe_pickle._entry)
    # An OrderedDict takes attributes; one named like a method of it must not confuse the reader.
    program = asks_for("collections", "OrderedDict", b")R}" + text("get") + text("x") + b"s" + b"b.")
    refusal(zip_around(program, tmp_path / "evil.ckpt"))


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "program.pt")
    assert "TorchScript program" in refusal(tmp_path / "program.pt")
    save(torch.nn.Linear(2, 2), tmp_path / "module.pt")  # a whole module, not its weights
    assert "it asks for torch.nn.modules.linear.Linear" in refusal(tmp_path / "module.pt")


def test_messages_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    message = refusal(zip_around(asks_for("os\n\x1b[2J", "system\u202e"), tmp_path / "evil.ckpt"))
    assert "os\\n\\x1b[2J.system\\u202e" in message
