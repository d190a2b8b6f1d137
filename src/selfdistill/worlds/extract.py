"""Finding the program in an answer: the longest closed fenced block, whatever its language tag.

A fence opens with three or more backticks and at most a tag, and closes with at least as many, alone on a line or at
the end of a line of code.
"""

from __future__ import annotations

import re

_OPENING = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,})[^`]*$")
_CLOSING = re.compile(r"^(?P<code>.*?)(?P<fence>`{3,})\s*$")


def extract_code(text: str) -> str | None:
    """The longest fenced block of `text`, the first of equals; None when no block was closed.

    A block that is still open at the end was cut off: what it holds is not what the answer meant to say.
    """
    blocks = fenced_blocks(text)
    return max(blocks, key=len) if blocks else None


def fenced_blocks(text: str) -> list[str]:
    """All closed blocks that hold anything, in order, without their fences and the fence's indentation."""
    blocks: list[str] = []
    lines: list[str] = []
    opening: re.Match[str] | None = None
    for line in text.splitlines():
        if opening is None:
            opening, lines = _OPENING.match(line), []
            continue
        closing = _CLOSING.match(line)
        line = line.removeprefix(opening["indent"])
        if closing is None or len(closing["fence"]) < len(opening["fence"]):
            lines.append(line)
            continue
        rest = line[: -len(closing["fence"])] if closing["code"].strip() else ""
        block = "\n".join([*lines, rest.rstrip("` \t")] if rest.strip("` \t") else lines)
        blocks += [block] if block.strip() else []
        opening = None
    return blocks
