"""Pickled weights files that are damaged, of another kind, or ask for more than there is: one line each."""

import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.util import UserError
from ldm.weights.pickled import PickledWeights
from pickle_files import refusal, save, text, zip_around

# --- small files that ask for much ---


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of memory")
def test_small_files_take_little(tmp_path: Path) -> None:
    programs = {
        "LONG_BINPUT": b"K\x01r\x00\x00\x00\x10.",  # remember it as number 2^28
        "PUT": b"K\x01p500000000\n.",
        "bytearray": b"\x96\x00\x00\x00\x00\x04\x00\x00\x00.",  # of 16 GB
        "deep key": b"})" + b"\x85" * 300_000 + b"K\x01s.",  # tuples within tuples
        "wide key": b"})" + b"2\x86" * 100 + b"K\x01s.",  # 2^100 tuples
        "wide storage": b"(" + text("storage") + b"N)" + b"2\x86" * 100 + b"NK\x01tQ.",
    }
    files = [zip_around(b"\x80\x02" + code, tmp_path / name) for name, code in programs.items()]
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from ldm.weights.pickled import PickledWeights\n"
        "held = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 2**30, -1))\n"
        "for file in sys.argv[1:]:\n"
        "    try: PickledWeights(Path(file))\n"
        "    except ValueError as error: print(error, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=300)
    said = done.stdout.splitlines()
    assert len(said) == len(files) and "MemoryError" not in done.stdout, done
    assert all(line.startswith(f"cannot read {file}: ") for line, file in zip(said, files, strict=True))


def test_compressed_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02(" + b"]" * 10_000_000 + b"l.")
    assert "it is compressed" in refusal(tmp_path / "evil.ckpt")


# --- damage ---


def test_tensors_outside_their_storage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    save({"weight": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        good, numbers = archive.read(f"{root}/data.pkl"), archive.read(f"{root}/data/0")
    size, offset = b"K\x04\x85q", b"QK\x00"  # shape (4,) and offset 0
    assert good.count(size) == 1 and good.count(offset) == 1
    for bad in (
        good.replace(size, b"K\x05\x85q"),
        good.replace(size, b"J\x00\x00\x00\x7f\x85q"),
        good.replace(size, b"J\xff\xff\xff\xff\x85q"),
        good.replace(size, text("4") + b"\x85q"),
        good.replace(offset, b"QK\x01"),
        good.replace(offset, b"QJ\xff\xff\xff\xff"),
        good.replace(b"K\x04tq", b"J\xff\xff\xff\x7ftq"),  # a storage larger than the file
    ):
        assert bad != good
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", bad)
            archive.writestr("archive/data/0", numbers)
        with pytest.raises(UserError, match="damaged"):
            PickledWeights(path).read("weight")


@pytest.mark.parametrize("zipped", [True, False])
def test_any_damage_is_one_line(tmp_path: Path, zipped: bool) -> None:
    path = save(
        {"state_dict": {"a": torch.ones(20), "b": torch.ones(3)}, "x": {1}}, tmp_path / "a.ckpt", zipped
    )
    good = path.read_bytes()
    draw = random.Random(0)
    broken = [good[: len(good) * part // 20] for part in range(1, 20)]
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        broken.append(bytes(bad))
    failed = 0
    for content in broken:
        path.write_bytes(content)
        try:
            file = PickledWeights(path)
            for name in file.shapes:
                file.read(name)
        except UserError as error:
            failed += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert failed >= 19


def test_truncated_zip_says_so(tmp_path: Path) -> None:
    path = save({"a": torch.ones(1000)}, tmp_path / "a.ckpt")
    path.write_bytes(path.read_bytes()[:3000])
    assert "truncated" in refusal(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    path.write_bytes(pickle.dumps({"weight": [1.0]}))
    assert "no PyTorch file" in refusal(path)
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    assert "not one that torch.save wrote" in refusal(tmp_path / "arrays.npz")
    assert "got one tensor" in refusal(save(torch.ones(2), path))
    assert "got a list" in refusal(save([torch.ones(2)], path))
    assert "got epoch, model" in refusal(save({"epoch": 1, "model": {"a": torch.ones(1)}}, path))
    assert "got an empty dict" in refusal(save({}, path))
