"""Versions and machine of a run, for its `config.json`."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("selfdistill", "torch", "transformers", "peft", "safetensors")


def describe_environment(*, device: str, isolation: str) -> Mapping[str, Any]:
    """Versions, machine, git commit of this package, device and sandbox level, as JSON values."""
    return {
        "versions": {"python": platform.python_version()} | {name: package_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "command": sys.argv,
        "git_commit": git_commit(Path(__file__).parent.parent),
        "device": device,
        "isolation": isolation,
    }


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is checked out at, with `+changes` when files differ from it; None outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit or _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # an installed package inside somebody else's repository is not at that repository's commit
    return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no", ".") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
