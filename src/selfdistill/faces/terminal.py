"""A terminal: lines in, text out. Without one, a line is a turn, and notes go to standard error."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfdistill.errors import ConfigError, SelfDistillError

# Control characters but tabs and line ends; letters that reorder others, or cannot be seen; halves of pairs.
_ORDERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e0fff]"
)
BLOCK = '"""'  # a line of it begins and ends a message of several lines


def plain(text: str) -> str:
    """Text that gives a terminal no orders and hides nothing: what could is written as ␛ or ⟨202e⟩."""
    return _ORDERS.sub(lambda found: _visible(ord(found[0])), text)


def _visible(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else f"⟨{code:x}⟩"


class Terminal:
    """Standard input and output. `interactive`: both are a terminal, where a person reads and types."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no letters are read as such, and end nothing
            sys.stdin.reconfigure(errors="replace")
        self._notes = self.console if self.interactive else Console(stderr=True, highlight=False, soft_wrap=True)
        if self.interactive:
            with suppress(ImportError):  # it gives `input` editing of lines, and those before
                import_module("readline")

    def turn(self, prompt: str) -> str:
        """A message, of several lines after a backslash or between two lines of three quotes. Raises `EOFError`."""
        text = self.line(prompt)
        if not self.interactive:
            return text
        if text.strip() == BLOCK:
            lines = list[str]()
            while (line := self.line("… ")).strip() != BLOCK:
                lines.append(line)
            return "\n".join(lines)
        while text.endswith("\\"):
            text = f"{text[:-1]}\n{self.line('… ')}"
        return text

    def line(self, prompt: str) -> str:
        """One line. Raises `EOFError`."""
        if self.interactive:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def decide(self, prompt: str) -> str:
        """A line that decides something: nothing that was typed before the prompt stands."""
        if self.interactive:
            termios = import_module("termios")
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
        else:
            self.note(prompt)
        return self.line(prompt).strip()

    def write(self, text: str) -> None:
        """A piece of a text that a model or a program wrote."""
        sys.stdout.write(plain(text))
        sys.stdout.flush()

    def show(self, *lines: str | Text, style: str = "") -> None:
        """Lines, of which texts are already plain."""
        for line in lines:
            self.console.print(line if isinstance(line, Text) else Text(plain(line), style))

    def note(self, text: str) -> None:
        """A remark beside the conversation."""
        self._notes.print(Text(plain(text), "dim"))

    def error(self, error: SelfDistillError) -> None:
        """An error after which the program continues."""
        self._notes.print(Text(plain(str(error)), "red"))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Rows in columns of the width they need."""
        lines = [[plain(str(cell)) for cell in row] for row in (header, *rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for number, line in enumerate(lines):
            text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.show(text.rstrip(), style="" if number else "bold")

    def edited(self, text: str, suffix: str = ".txt") -> str:
        """A text as the user's editor leaves it. Raises `ConfigError` where there is none or it fails."""
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"change{suffix}"
            file.write_text(text, encoding="utf-8", newline="")
            try:
                subprocess.run([*shlex.split(editor), str(file)], check=True)
                found = file.read_bytes().decode()
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                do = "name one in the variable EDITOR, or refuse the change with words"
                raise ConfigError("the editor did not work", got=f"{editor}: {error}", do=do) from error
        return found[:-1] if found == f"{text}\n" or (not text.endswith("\n") and found.endswith("\n")) else found
