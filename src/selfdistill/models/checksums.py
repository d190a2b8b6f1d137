"""Checksums of a checkpoint: a byte that changed on the disk is found before it is trained on, and its file is named.

`checkpoint.json` holds the SHA-256 of every other file, and its own: of its text with zeros in place of that digest.
Costs about a second for each gigabyte, when a checkpoint is written and when it is resumed from; files side by side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ABOUT = "checkpoint.json"
BLANK = "0" * 64


def write_about(directory: Path, about: Mapping[str, Any]) -> None:
    """Writes `checkpoint.json`, with the checksums of all that the directory holds by now."""
    names = [str(file.relative_to(directory)) for file in sorted(directory.rglob("*")) if file.is_file()]
    files = dict(zip(names, _digests(directory, names), strict=True))
    text = json.dumps({"sha256": BLANK, **about, "files": files}, indent=1) + "\n"
    own = hashlib.sha256(text.encode()).hexdigest()
    (directory / ABOUT).write_text(text.replace(BLANK, own, 1), encoding="utf-8")


def changed_files(directory: Path, about: Mapping[str, Any]) -> list[str]:
    """The files that are not as they were written, or gone. A checkpoint of an earlier version has no checksums: of
    such a one nothing is said. Raises `OSError`."""
    own, files = about.get("sha256"), about.get("files")
    if own is None and files is None:
        return []
    raw = (directory / ABOUT).read_bytes()
    blanked = raw.replace(str(own).encode(), BLANK.encode(), 1)
    if not isinstance(files, dict) or hashlib.sha256(blanked).hexdigest() != own:
        return [ABOUT]
    there = [name for name in files if (directory / name).is_file()]
    found = dict(zip(there, _digests(directory, there), strict=True))
    return [name for name, digest in files.items() if found.get(name) != digest]


def _digests(directory: Path, names: list[str]) -> list[str]:
    def digest(name: str) -> str:
        with (directory / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return list(pool.map(digest, names))
