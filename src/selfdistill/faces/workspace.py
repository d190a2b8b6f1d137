"""The files of one directory, and commands in it. No path leads out of it: neither an absolute one, nor `..`, nor a
symbolic link, even one that is put there while a path is followed."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from selfdistill.envs.sandbox.lockdown import restrict_writes
from selfdistill.errors import ConfigError

MOST_BYTES = 2**20  # of a file that is read
MOST_FILES = 20_000  # that a search looks at
HEAD, TAIL = 1000, 2500  # bytes of an output that are kept
MOST_OUTPUT = 64 * 2**20  # bytes, at which a command is stopped
SKIPPED = ("__pycache__", "node_modules")  # and what begins with a dot
SECRETS = ("SELFDISTILL_TOKEN",)


class Workspace:
    """A directory. Its methods raise `OSError` or `ValueError` for paths that cannot be used."""

    def __init__(self, root: Path) -> None:
        try:
            self.root = root.resolve(strict=True)
            self._root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError("the directory cannot be opened", got=f"{root}: {error.strerror}") from error

    def read(self, path: str) -> str:
        """The text of a file."""
        with self._folder(path) as (folder, name):
            return self._read(folder, name, path).decode()

    def write(self, path: str, text: str, *, before: str | None) -> None:
        """Replaces a file as a whole, or makes one with its directories where `before`, its text so far, is None."""
        with self._folder(path, make=before is None) as (folder, name):
            self._check(folder, name, path, before)
            new = f".{secrets.token_hex(8)}.tmp"
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(text.encode())
                    if before is not None:
                        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
                        os.fchmod(file.fileno(), stat.S_IMODE(mode))
                os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(new, dir_fd=folder)
                raise

    def before(self, path: str) -> str | None:
        """The text of a file that is to be changed; None where there is none. Raises `PermissionError` for .git."""
        if any(part.casefold() == ".git" for part in self._parts(path)):
            raise PermissionError("git's own files are not written")
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def files(self, folder: str = ".") -> Iterator[str]:
        """The paths below a folder, in order, without hidden ones."""
        top = "/".join(self._parts(folder))
        with self._folder(f"{top}/." if top else ".", whole=True) as (descriptor, _):
            for place, folders, names, _ in os.fwalk(".", dir_fd=descriptor, follow_symlinks=False):
                folders[:] = sorted(each for each in folders if not each.startswith(".") and each not in SKIPPED)
                for name in sorted(each for each in names if not each.startswith(".")):
                    yield os.path.normpath(os.path.join(top, place, name))

    def search(self, text: str, folder: str = ".") -> Iterator[str]:
        """The lines with a text, each as path:number: line."""
        for count, path in enumerate(self.files(folder)):
            if count == MOST_FILES:
                yield f"(only {MOST_FILES} files were searched)"
                return
            with suppress(OSError, ValueError):
                for number, line in enumerate(self.read(path).split("\n"), start=1):
                    if text in line:
                        yield f"{path}:{number}: {line.strip()[:200]}"

    def _parts(self, path: str) -> list[str]:
        """The names of a path below the directory."""
        if "\0" in path:
            raise ValueError("a path holds no zero bytes")
        inside = path.removeprefix(f"{self.root}/") if path != str(self.root) else "."
        parts = [part for part in inside.split("/") if part not in ("", ".")]
        if inside.startswith("/") or ".." in parts:
            raise PermissionError(f"{path} is outside of the directory: give a path below it, such as src/main.py")
        return parts

    @contextmanager
    def _folder(self, path: str, *, make: bool = False, whole: bool = False) -> Iterator[tuple[int, str]]:
        """The directory of a path, open, and the last name of the path; with `whole` the path itself, open."""
        parts = self._parts(path)
        if not parts and not whole:
            raise IsADirectoryError(f"{path} is the directory itself")
        last = "" if whole else parts.pop()
        descriptor = os.dup(self._root)
        try:
            for part in parts:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=descriptor)
                inner = _open(part, os.O_DIRECTORY, descriptor, path)
                os.close(descriptor)
                descriptor = inner
            yield descriptor, last
        finally:
            os.close(descriptor)

    def _read(self, folder: int, name: str, path: str) -> bytes:
        with os.fdopen(_open(name, os.O_NONBLOCK, folder, path), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise PermissionError(f"{path} is no ordinary file")
            if about.st_size > MOST_BYTES:
                raise ValueError(f"{path} has {about.st_size} bytes; at most {MOST_BYTES} are read")
            return file.read(MOST_BYTES)

    def _check(self, folder: int, name: str, path: str, before: str | None) -> None:
        try:
            now: str | None = self._read(folder, name, path).decode()
        except FileNotFoundError:
            now = None
        if now != before:
            raise FileExistsError(f"{path} has changed since it was read: read it again")

    def run(self, command: str, *, limit_s: float, confined: bool = True) -> tuple[str, int | None]:
        """The output of a shell command, shortened, and its exit code; None for one that was stopped, at its time limit
        or for what it printed. What it left behind in its session ends with it. `confined`: it can change files in the
        directory and in a temporary one of its own alone, where Landlock is there."""
        with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as output:
            environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
            child = subprocess.Popen(
                ("/bin/sh", "-c", command),
                cwd=self.root,
                env={**environment, "TMPDIR": scratch},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(restrict_writes, (str(self.root), scratch)) if confined else None,
            )
            try:
                deadline = time.monotonic() + limit_s
                while (status := child.poll()) is None and time.monotonic() < deadline:
                    if os.fstat(output.fileno()).st_size > MOST_OUTPUT:
                        break
                    time.sleep(0.02)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            size = output.seek(0, os.SEEK_END)
            output.seek(0)
            head = output.read(HEAD if size > HEAD + TAIL else size).decode(errors="replace")
            output.seek(max(size - TAIL, output.tell()))
            tail, lost = output.read(TAIL).decode(errors="replace"), size - HEAD - TAIL
        return f"{head}\n… ({lost} bytes left out) …\n{tail}" if lost > 0 else head, status


def _open(name: str, flags: int, folder: int, path: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            what = f"{path} leads through a symbolic link or a file: links are not followed"
            raise PermissionError(what) from None
        raise type(error)(f"{path}: {error.strerror}") from None
