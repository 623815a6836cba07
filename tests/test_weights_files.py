"""Weights files without a model: telling their kinds apart, what is none, and writing them."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.weights.opening import file_facts, open_weights, read_state_dict
from ldm.weights.single_file import save_safetensors
from weights_files import message, save

# --- formats ---


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "x"])
@pytest.mark.parametrize("kind", ["safetensors", "lightning", "bare", "stream"])
def test_formats_are_told_apart_by_content(tmp_path: Path, kind: str, name: str) -> None:
    state = {"a.weight": torch.randn(3, 4), "b": torch.arange(3), "half": torch.ones(2).half()}
    read = read_state_dict(save(state, tmp_path / name, kind))
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        assert read[key].dtype == tensor.dtype and torch.equal(read[key], tensor)


def test_writing_to_read_weights_leaves_the_file_alone(tmp_path: Path) -> None:
    for kind in ("safetensors", "bare"):
        path = save({"a": torch.ones(3)}, tmp_path / kind, kind)
        read_state_dict(path)["a"].zero_()
        assert read_state_dict(path)["a"].tolist() == [1, 1, 1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("kind", ["safetensors", "bare"])
def test_released_weights_leave_memory_and_come_back(tmp_path: Path, kind: str) -> None:
    def mapped_megabytes() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssFile"))

    numbers = torch.randn(8 * 2**20)  # 32 MB
    weights = open_weights(save({"a": numbers}, tmp_path / "x", kind))
    tensor = weights.read("a")
    unread = mapped_megabytes()
    for _ in range(2):
        assert torch.equal(tensor, numbers)
        assert mapped_megabytes() > unread + 24
        weights.release()
        assert mapped_megabytes() < unread + 8


@pytest.mark.parametrize("dtype", ["F8_E4M3", "Q4"])
def test_safetensors_of_unknown_numbers(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([1, 2]))
    said = message(read_state_dict, path)
    assert f"tensor a is of type {dtype}" in said or "its header is damaged" in said


@pytest.mark.parametrize("first_byte", [0x08, 0x3C, 0x50, 0x80])
def test_a_safetensors_header_of_any_length(tmp_path: Path, first_byte: int) -> None:
    """Its length comes first in the file, where HTML has "<", zip "P" and a pickle 0x80."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode()
    header = header.ljust(0x100 + first_byte)
    path = tmp_path / "x.ckpt"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([1, 2]))
    assert path.read_bytes()[0] == first_byte
    assert read_state_dict(path)["a"].tolist() == [1, 2]


# --- errors ---


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("instruct-pix2pix-00-22000.ckpt", "download_checkpoints.sh"),
        ("instruct-pix2pix-00-22000.safetensors", "download_checkpoints.sh"),
        ("v1-5-pruned-emaonly.ckpt", "download_pretrained_sd.sh"),
        ("vae-ft-mse-840000-ema-pruned.ckpt", "download_pretrained_sd.sh"),
    ],
)
def test_missing_published_file_names_the_download(tmp_path: Path, name: str, script: str) -> None:
    said = message(read_state_dict, tmp_path / name)
    assert said == f"there is no file {tmp_path / name}; fetch it with: bash scripts/{script}"
    (tmp_path / name).write_bytes(b"")
    assert message(read_state_dict, tmp_path / name).endswith(f"; fetch it again with: bash scripts/{script}")


def test_missing_own_file_names_no_download(tmp_path: Path) -> None:
    assert message(read_state_dict, tmp_path / "mine.ckpt") == f"there is no file {tmp_path / 'mine.ckpt'}"


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (b"\r\n<!DOCTYPE html>\n<html>", "a web page"),
        (b"<html><body>404", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (b"\0" * 257 + b"ustar" + b"\0" * 200, "a tar archive"),
        (b"Entry not found", "starts with b'Entry no'"),
    ],
)
def test_what_is_no_weights_file(tmp_path: Path, content: bytes, got: str) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    said = message(read_state_dict, path)
    assert said.startswith(f"cannot read {path}: expected weights, got ") and got in said


def test_folder(tmp_path: Path) -> None:
    assert "directory" in message(read_state_dict, tmp_path)


def test_truncated_files(tmp_path: Path) -> None:
    for kind in ("safetensors", "bare", "stream"):
        content = save({"a": torch.ones(5000)}, tmp_path / "x.ckpt", kind).read_bytes()
        for size in (len(content) // 2, len(content) - 1, 30):
            (tmp_path / "x.ckpt").write_bytes(content[:size])
            said = message(read_state_dict, tmp_path / "x.ckpt")
            assert "truncated" in said or "damaged" in said
            if kind == "safetensors":
                full = len(content) if size > 30 else 8 + int.from_bytes(content[:8], "little")
                assert f"truncated, {size} of {full} bytes" in said


def test_damaged_safetensors_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for header in (b'{"a": 1}', b'{"a": {"shape": 3}}', b'{"a" {', b'{"__metadata__": 3, "b": []}'):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        assert "its header is damaged" in message(read_state_dict, path)


# --- names ---


@pytest.mark.parametrize(("there", "asked"), [("ckpt", "safetensors"), ("safetensors", "ckpt")])
def test_published_weights_are_found_under_either_suffix(there: str, asked: str, tmp_path: Path) -> None:
    file = tmp_path / f"v1-5-pruned.{there}"
    save_safetensors({"a": torch.ones(2)}, file)  # its content says what it is, not its name
    assert open_weights(tmp_path / f"v1-5-pruned.{asked}").shapes == {"a": (2,)}
    assert file_facts(tmp_path / f"v1-5-pruned.{asked}") == [file.name, file.stat().st_size]
    (tmp_path / f"v1-5-pruned.{asked}").write_text("")
    assert "empty" in message(open_weights, tmp_path / f"v1-5-pruned.{asked}")  # what is there is taken


def test_what_tells_weights_apart(tmp_path: Path) -> None:
    (tmp_path / "model/unet").mkdir(parents=True)
    (tmp_path / "model/unet/a").write_bytes(b"12345")
    (tmp_path / "model/b").write_bytes(b"1")
    assert file_facts(None) is None
    assert file_facts(tmp_path / "model") == ["model", 6]
    assert file_facts("owner/name") == ["owner/name"]
    assert "cannot read none.ckpt: No such file" in message(file_facts, "none.ckpt")


# --- writing ---


def test_save_safetensors_of_odd_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    state = {"a": base, "tied": base, "part": base[3:7], "strided": base.view(4, 6).T}
    state |= {"parameter": nn.Parameter(base), "empty": torch.empty(0, 2)}
    state["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    save_safetensors(state, tmp_path / "x.safetensors")
    read = read_state_dict(tmp_path / "x.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_save_replaces_a_file_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_safetensors({"a": torch.ones(2)}, path)
    kept = read_state_dict(path)
    with pytest.raises(RuntimeError):
        save_safetensors({"a": torch.ones(2, device="meta")}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    save_safetensors({"a": kept["a"] + 1}, path)  # onto the very file that is being read
    assert read_state_dict(path)["a"].tolist() == [2, 2] and kept["a"].tolist() == [1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    (tmp_path / "file").write_text("")
    assert "cannot write" in message(save_safetensors, {"a": torch.ones(2)}, tmp_path / "file" / "x")
    (tmp_path / "folder").mkdir()
    assert "cannot write" in message(save_safetensors, {"a": torch.ones(2)}, tmp_path / "folder")
