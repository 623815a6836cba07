"""Tar shards of a dataset, as the library webdataset and its like read them.

A pair is a sample with the key ``{folder}_{seed}`` and the members ``.0.jpg`` (before), ``.1.jpg`` (after)
and ``.json`` (the prompt, and the pair's line of ``metadata.jsonl``). A prompt of which no pair was kept is
one member, ``{folder}.json``.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ldm.data.formats import (
    fields_in,
    pair_names,
    pair_paths,
    prompt_folders,
    read_fields,
    read_metadata,
    seeds_on_disk,
    write_prompt,
)
from ldm.files import replacing
from ldm.util import UserError, one_line

_MEMBER = re.compile(r"(\d{7,})(?:_(\d+)\.(0\.jpg|1\.jpg|json)|\.json)", re.ASCII)
_PAIR_FIELDS = re.compile(r"seed|p2p_threshold|cfg_scale|clip_sim_\w+|nsfw_score")


def pack(folders: Sequence[Path], shard: Path) -> None:
    """Write the folders of prompts into a shard; the same folders give the same bytes.

    Raises:
        UserError: one of them cannot be read, half of a pair is missing, or the shard cannot be written.
    """
    with replacing(shard) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for folder in sorted(folders):
            fields = read_fields(folder)
            lines = {str(line["seed"]): line for line in read_metadata(folder)}
            seeds = [*lines, *(seed for seed in seeds_on_disk(folder) if seed not in lines)]
            if not seeds:
                _add(tar, f"{folder.name}.json", json.dumps(fields).encode())
            for seed in seeds:
                key = f"{folder.name}_{seed}"
                for side, file in enumerate(pair_paths(folder, seed)):
                    _add(tar, f"{key}.{side}.jpg", _picture(file))
                _add(tar, f"{key}.json", json.dumps({**fields, **lines.get(seed, {})}).encode())


def _picture(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot pack {file}: {one_line(error)}") from error


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def unpack(shard: Path, root: Path) -> list[str]:
    """Make the folders of a shard's prompts again, in `root`; one that is there stays as it is.

    Returns:
        The names of the prompts in the shard.

    Raises:
        UserError: it cannot be read, holds anything else, or the folders cannot be written.
    """
    names = []
    try:
        with tarfile.open(shard, "r|") as tar:
            for name, members in _prompts(tar, shard):
                if name in names:
                    raise UserError(f"{shard}: expected the pairs of prompt {name} one after another")
                names.append(name)
                if not (root / name).exists():
                    _write(root / name, members)
    except UserError:
        raise
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"cannot unpack {shard}: {error}") from error
    return names


def _prompts(tar: tarfile.TarFile, shard: Path) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Of one prompt after the other its name, and its members with what follows that name."""
    current, members = "", list[tuple[str, bytes]]()
    for member in tar:
        found = _MEMBER.fullmatch(member.name)
        if not found or not member.isfile():
            raise UserError(
                f"{shard}: expected pairs of pictures and their prompts, got {member.name[:80]!r}"
            )
        if found[1] != current and members:
            yield current, members
            members = []
        current = found[1]
        content = tar.extractfile(member)
        assert content is not None, "a regular file has content"
        members.append((member.name.removeprefix(current), content.read()))
    if members:
        yield current, members


def _write(folder: Path, members: list[tuple[str, bytes]]) -> None:
    """Make the folder of a prompt."""
    prompt: dict[str, Any] = {}
    lines = []
    pictures: dict[str, bytes] = {}
    for rest, content in members:
        if rest.endswith(".json"):
            fields = fields_in(content)
            prompt = {name: value for name, value in fields.items() if not _PAIR_FIELDS.fullmatch(name)}
            if pair := {name: value for name, value in fields.items() if name not in prompt}:
                lines.append(pair)
        else:
            seed, side, _ = rest.removeprefix("_").split(".")
            pictures[pair_names(seed)[int(side)]] = content
    write_prompt(folder, prompt, pictures, lines)


def shards_in(root: Path) -> list[Path]:
    """The shards of a dataset, by name."""
    return sorted(root.glob("*.tar"))


def unpack_all(root: Path) -> Iterator[tuple[Path, int]]:
    """Unpack the shards of a dataset beside them, and give each with the number of its prompts."""
    there = {folder.name for folder in prompt_folders(root)}
    for shard in shards_in(root):
        if not set(_names(shard)) <= there:
            yield shard, len(unpack(shard, root))


def _names(shard: Path) -> Iterator[str]:
    """Names of the prompts in a shard, without their content."""
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                yield re.split(r"\D", member.name, maxsplit=1)[0]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"cannot unpack {shard}: {error}") from error
