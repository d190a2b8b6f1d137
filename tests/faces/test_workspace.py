"""No path leads out of the directory, and commands end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from core_parts import gone
from selfdistill.envs.sandbox.lockdown import landlock_abi
from selfdistill.errors import ConfigError
from selfdistill.faces import workspace as module
from selfdistill.faces.workspace import Workspace

SECRET = "SECRET"


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """A directory beside a secret one, with links to it."""
    root, outside = tmp_path / "root", tmp_path / "root-outside"
    (root / "src").mkdir(parents=True)
    (root / ".git" / "hooks").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    (root / "src" / "main.py").write_text("def main():\n    return 1\n")
    (root / "folder-link").symlink_to(outside)
    (root / "file-link").symlink_to(outside / "secret")
    (root / "dangling").symlink_to(outside / "new")
    (root / "up").symlink_to("..")
    os.link(outside / "secret", root / "hard-link")
    os.mkfifo(root / "pipe")
    return Workspace(root)


OUT = (
    "/etc/passwd", "../root-outside/secret", "src/../../root-outside/secret", "folder-link/secret", "file-link",
    "dangling", "dangling/new", "up/root-outside/secret", "src/main.py/x", "src\0", "", ".", "src", "pipe", "..",
    "//etc/passwd", "{root}-outside/secret", "{root}/../root-outside/secret", "./folder-link/../folder-link/secret",
)  # fmt: skip


@pytest.mark.parametrize("path", OUT)
def test_paths_that_lead_out_or_to_no_file(space: Workspace, path: str):
    path = path.format(root=space.root)
    with pytest.raises((OSError, ValueError)):
        space.read(path)
    for before in (None, SECRET):
        with pytest.raises((OSError, ValueError)):
            space.write(path, "changed", before=before)
    outside = space.root.parent / "root-outside"
    assert [(file.name, file.read_text()) for file in outside.iterdir()] == [("secret", SECRET)]


def test_reading_and_writing(space: Workspace):
    before = space.before("src/main.py")
    assert before == space.read(f"{space.root}/src/main.py") == space.read("./src//main.py")
    os.chmod(space.root / "src" / "main.py", 0o750)
    space.write("src/main.py", "new\r\n", before=before)
    assert (space.root / "src" / "main.py").read_bytes() == b"new\r\n"
    assert (space.root / "src" / "main.py").stat().st_mode & 0o777 == 0o750
    assert space.before("a/b/c.py") is None
    space.write("a/b/c.py", "x", before=None)
    assert space.read("a/b/c.py") == "x"
    with pytest.raises(FileExistsError, match="has changed"):
        space.write("a/b/c.py", "y", before=None)
    with pytest.raises(FileExistsError, match="has changed"):
        space.write("src/main.py", "y", before=before)
    space.write("hard-link", "mine", before=space.before("hard-link"))
    assert (space.root.parent / "root-outside" / "secret").read_text() == SECRET
    for path in (".git/hooks/pre-commit", "src/.GIT/config"):
        with pytest.raises(PermissionError, match="git"):
            space.before(path)
    (space.root / "big").write_bytes(b" " * (module.MOST_BYTES + 1))
    (space.root / "image").write_bytes(b"\xff\xfe\x00")
    for path in ("big", "image"):
        with pytest.raises(ValueError, match=r"bytes|decode"):
            space.read(path)
    assert not list(space.root.rglob("*.tmp"))
    with pytest.raises(ConfigError, match="cannot be opened"):
        Workspace(space.root / "nowhere")


def test_a_link_that_appears_while_a_path_is_followed(space: Workspace, monkeypatch: pytest.MonkeyPatch):
    """The directory in a path becomes a link to the secret one right after it was opened."""
    root, open_part = space.root, module._open
    (root / "d").mkdir()
    (root / "d" / "secret").write_text("mine")

    def opened(name: str, *given: Any) -> int:
        descriptor = open_part(name, *given)
        if name == "d" and not (root / "d").is_symlink():
            (root / "d").rename(root / "away")
            (root / "d").symlink_to(root.parent / "root-outside")
        return descriptor

    monkeypatch.setattr(module, "_open", opened)
    assert space.read("d/secret") == "mine"
    with pytest.raises(PermissionError, match="symbolic"):
        space.read("d/secret")
    (root / "d").unlink()
    (root / "away").rename(root / "d")
    space.write("d/secret", "changed", before="mine")
    assert (root / "away" / "secret").read_text() == "changed"
    assert (root.parent / "root-outside" / "secret").read_text() == SECRET


def test_listing_and_searching(space: Workspace):
    assert sorted(space.files()) == ["dangling", "file-link", "hard-link", "pipe", "src/main.py"]
    assert list(space.files("src")) == ["src/main.py"]
    assert list(space.search("return", "./src/")) == ["src/main.py:2: return 1"]
    assert list(space.search(SECRET)) == ["hard-link:1: SECRET"]  # it is a file of the directory too
    for folder in ("..", "folder-link", "/etc"):
        with pytest.raises(OSError, match=r"outside|symbolic"):
            list(space.files(folder))


def test_commands_end(space: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SELFDISTILL_TOKEN", SECRET)
    output, status = space.run("cat; pwd; env; exit 3", limit_s=20)
    assert (status, f"{space.root}\n" in output, SECRET in output) == (3, True, False)
    began = time.monotonic()
    output, status = space.run("(sleep 60; echo late) & echo begun; trap '' TERM INT; sleep 60", limit_s=2)
    assert (output, status) == ("begun\n", None)
    output, status = space.run("sleep 60 & echo $!", limit_s=20)
    assert status == 0
    assert time.monotonic() - began < 15
    assert gone([int(output)])
    output, status = space.run("seq 100000", limit_s=20)
    assert output.startswith("1\n2\n")
    assert output.endswith("99999\n100000\n")
    assert f"({588895 - module.HEAD - module.TAIL} bytes left out)" in output
    assert len(output) < module.HEAD + module.TAIL + 50
    monkeypatch.setattr(module, "MOST_OUTPUT", 1000)
    assert space.run("yes", limit_s=60)[1] is None


@pytest.mark.skipif(not landlock_abi(), reason="needs Landlock")
def test_confined_commands_change_this_directory_alone(space: Workspace):
    outside = space.root.parent / "root-outside"
    tried = (
        f"echo x > made; mkdir -p d; mktemp; echo x > {outside}/secret; rm {outside}/secret; echo x > folder-link/new"
    )
    output, _ = space.run(f"{tried}; cat {outside}/secret; echo x > /dev/null && echo ok", limit_s=20)
    assert output.endswith(f"{SECRET}ok\n")
    assert (space.root / "made").read_text() == "x\n"
    assert [(file.name, file.read_text()) for file in outside.iterdir()] == [("secret", SECRET)]
    space.run(f"echo x > {outside}/new", limit_s=20, confined=False)
    assert (outside / "new").exists()
