"""Finding the program in an answer: which fenced block it is.

The last closed block that defines the function or class the task names; where none does, the longest tagged `python` or
`py`; else the longest.

A fence opens with three or more backticks and at most a tag, and closes with at least as many, alone on a line or at
the end of a line of code. Only "\n" ends a line. A fence indented by four columns or more is no fence, as in Markdown.
All of it takes time linear in the length of the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_OPENING = re.compile(r"(?P<indent> {0,3})(?P<fence>`{3,}+)[^`\w]*+(?P<tag>[\w-]*+)[^`]*+")
_PYTHON = ("python", "py", "python3", "py3")


@dataclass(frozen=True, slots=True)
class Block:
    """A closed fenced block: its tag in lower case, and its lines without fences and the fence's indentation."""

    tag: str
    code: str


def extract_code(text: str, name: str = "") -> str | None:
    """The program of an answer whose thinking was removed; None when no block was closed.

    `name` is the function or class that the task asks for, where it asks for one. Of blocks of equal length the first
    counts. A block that is still open at the end was cut off: what it holds is not what the answer meant to say.
    """
    blocks = fenced_blocks(text)
    if name:
        defining = next((block for block in reversed(blocks) if _defines(block.code, name)), None)
        if defining is not None:
            return defining.code
    tagged = [block for block in blocks if block.tag in _PYTHON]
    return max((block.code for block in tagged or blocks), key=len, default=None)


def fenced_blocks(text: str) -> list[Block]:
    """All closed blocks that hold anything, in order."""
    blocks: list[Block] = []
    lines: list[str] = []
    opening: re.Match[str] | None = None
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        if opening is None:
            opening, lines = _OPENING.fullmatch(line), []
            continue
        code = _before_closing(line, len(opening["fence"]))
        if code is None or code.strip():
            lines.append(_outdented(line if code is None else code, len(opening["indent"])))
        if code is not None:
            block = "\n".join(lines)
            blocks += [Block(opening["tag"].lower(), block)] if block.strip() else []
            opening = None
    return blocks


def _before_closing(line: str, ticks: int) -> str | None:
    """What stands before the closing fence of at least so many `ticks` at the end of a line; None without one."""
    bare = line.rstrip()
    code = bare.rstrip("`")
    if len(bare) - len(code) < ticks or "```" in code:  # ```code``` within a line is no fence
        return None
    if not code.strip() and len(code.expandtabs(4)) > 3:
        return None
    return code.rstrip()


def _outdented(line: str, columns: int) -> str:
    return line[min(columns, len(line) - len(line.lstrip(" "))) :]


def _defines(code: str, name: str) -> bool:
    """Whether a block defines a function or class at its top level, by statement or assignment, or as a method of a
    class `Solution`."""
    name = re.escape(name)
    if re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]*)?=(?!=)", code, re.MULTILINE):
        return True
    solution = re.search(r"^class[ \t]+Solution\b", code, re.MULTILINE)
    method = re.compile(rf"^[ \t]++(?:async[ \t]+)?def[ \t]+{name}\b", re.MULTILINE)
    return solution is not None and method.search(code, solution.end()) is not None
