"""The dataset's folder while pairs are made: a prompt stands there complete, or not at all.

What the pairs depend on stands in ``settings.json``, so that another set-up does not go on in the same
folder. In the format "webdataset" finished folders are packed into tar shards, `SHARD` prompts each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataset_creation.pairs.maker import MadePrompt
from ldm.data.formats import FOLDER, folder_name, jpeg, pair_names, write_prompt
from ldm.data.shards import pack
from ldm.files import replacing
from ldm.util import UserError, differences, one_line

SHARD = 1000  # prompts: about a gigabyte of 512 px pictures
SETTINGS = "settings.json"
_SHARD = re.compile(r"pairs-([0-9]{7,})-([0-9]{7,})\.tar")


class PairFolder:
    """A dataset's folder, made if it is not there.

    Args:
        root: the folder.
        settings: what the pairs depend on, in plain JSON types.
        force: go on in a folder that was begun with other settings.

    Raises:
        UserError: the folder cannot be written, or was begun with other settings.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any], *, force: bool = False) -> None:
        self.root = root
        file = root / SETTINGS
        try:
            root.mkdir(parents=True, exist_ok=True)
            before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot use {root}: {error}") from error
        if before is None and not force and existing(root):
            raise UserError(f"{root} holds prompts but no {SETTINGS}: expected a new folder, or --force")
        if before != settings:
            if before is not None and not force and existing(root):
                raise UserError(
                    f"{root} was begun with {differences(before, settings)}; expected the same settings, "
                    "another folder, or --force"
                )
            with replacing(file) as part:
                part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8", newline="\n")

    def write(self, made: MadePrompt) -> None:
        """Write a prompt; one that is there already stays.

        Raises:
            UserError: it cannot be written; nothing of it is left behind.
        """
        kept = [made.samples[i] for i in made.kept]
        pictures = {
            name: jpeg(picture)
            for sample in kept
            if sample.pictures is not None
            for name, picture in zip(pair_names(sample.settings.seed), sample.pictures, strict=True)
        }
        folder = self.root / folder_name(made.prompt.number)
        write_prompt(folder, made.prompt.fields, pictures, [sample.line() for sample in kept])

    def pack(self, numbers: Iterable[int]) -> None:
        """Move folders of neighbouring prompts into a shard."""
        folders = [self.root / folder_name(number) for number in sorted(numbers)]
        if not folders:
            return
        shard = self.root / f"pairs-{folders[0].name}-{folders[-1].name}.tar"
        if not shard.exists():
            pack(folders, shard)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def existing(root: Path) -> set[int]:
    """Numbers of the prompts in a dataset's folder, in folders or shards; none where there is no folder."""
    numbers: set[int] = set()
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return numbers
    except OSError as error:
        raise UserError(f"cannot read {root}: {one_line(error)}") from error
    for name in names:
        if FOLDER.fullmatch(name):
            numbers.add(int(name))
        elif shard := _SHARD.fullmatch(name):
            numbers.update(range(int(shard[1]), int(shard[2]) + 1))
    return numbers


def shard_of(number: int) -> int:
    """The number of the shard that a prompt goes into."""
    return number // SHARD
