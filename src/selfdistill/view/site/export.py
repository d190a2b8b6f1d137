"""A run as one page in one file, which holds the answers to all of its own questions."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterator
from html import escape
from pathlib import Path

from selfdistill.errors import RunError
from selfdistill.view.site.answers import Answers
from selfdistill.view.site.app import SCRIPTS, STYLES, page, static
from selfdistill.view.site.library import Library


def export(run: Path, file: Path, steps: Collection[int] = ()) -> int:
    """Writes the page of a run with the rollouts of some steps, or of all, and returns its size in bytes. Raises
    `RunError` for a step that is not there, and where the file cannot be written."""
    answers = Answers(Library([run]))
    entry = answers.library.get(run.absolute().name, "run")
    there = entry.rows.steps
    if missing := sorted(set(steps) - set(there)):
        do = f"its rollouts are of steps {there[0]} to {there[-1]}" if there else "it has no rollouts yet"
        raise RunError("the run has no rollouts of this step", got=", ".join(map(str, missing)), do=do)
    style, script = static(*STYLES), static(*SCRIPTS)
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{style}</style>'
    begin, _, end = page(head, "<!--data-->").partition("<!--data-->")
    rollouts = [(step, [uid for _, uid in entry.rows.heads(step)]) for step in sorted(steps) or there]
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(begin)
            for name, *values in _questions(entry.id, rollouts):
                text = answers(name, dict(zip(answers.PARAMETERS[name], values, strict=True))).decode()
                text, key = text.replace("<", r"\u003c"), escape("\n".join((name, *values)))
                out.write(f'<script type="application/json" data-key="{key}">{text}</script>\n')
            out.write(f"<script>{script}</script>{end}")
    except FileExistsError:
        raise RunError("the file exists", got=file, do="name another one, or remove it") from None
    except OSError as error:
        raise RunError("the page cannot be written", got=error, do="choose another file") from None
    return file.stat().st_size


def _questions(name: str, rollouts: list[tuple[int, list[str]]]) -> Iterator[tuple[str, ...]]:
    """What the pages of a run ask, with these rollouts by step."""
    yield "run", name
    for step, uids in rollouts:
        yield "rows", name, str(step), "", ""
        for uid in dict.fromkeys(uids):
            yield "rollout", name, str(step), uid
            yield "prompts", name, str(step), uid


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
