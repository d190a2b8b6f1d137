"""What student and teacher read, as texts with their difference marked, by the tokenizer of the run's checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path
from threading import Lock

from tokenizers import Tokenizer

from selfdistill.errors import RunError
from selfdistill.runs.records import RolloutRecord
from selfdistill.runs.store import CHECKPOINTS

LONGEST = 2_000  # ids between a common beginning and a common end, up to which differences are looked for
_ONE = Lock()
Decode = Callable[[Sequence[int]], str]
Part = tuple[str, str]  # "same", "student" or "teacher", who alone read it; and the text


def decoder(run: Path) -> Decode | None:
    """Token ids as text, special tokens included; None where the run has no checkpoint with a tokenizer."""
    files = sorted((run / CHECKPOINTS).glob("step-*/tokenizer.json"))
    if not files:
        return None
    with _ONE:  # two requests load it once
        tokenizer = _tokenizer(files[-1])
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


@lru_cache(maxsize=1)  # one of 150,000 tokens takes about 60 MB
def _tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # of no narrower class
        raise RunError("the tokenizer of the run cannot be read", got=f"{file}: {error}", do="restore it") from error


def prompts_of(row: RolloutRecord, decode: Decode | None) -> list[dict[str, object]]:
    """For each turn (an answer is one) the lengths of what both read before it, and the parts where there is a
    tokenizer. A teacher without a prompt of its own read nothing, or the same."""
    turns = [(turn.read, turn.teacher_read or turn.read) for turn in row.turns]
    if turns and row.teacher_prompt_ids:
        turns[0] = (turns[0][0], row.teacher_prompt_ids)
    found = []
    for student, teacher in turns or [(row.prompt_ids, row.teacher_prompt_ids)]:
        parts = compared(student, teacher, decode) if decode and teacher else []
        parts = parts or ([("same", decode(student))] if decode and student else [])
        found.append({"student": len(student), "teacher": len(teacher), "parts": parts})
    return found


def compared(student: Sequence[int], teacher: Sequence[int], decode: Decode) -> list[Part]:
    """Two prompts as one row of parts."""
    short = min(len(student), len(teacher))
    begin = next((n for n in range(short) if student[n] != teacher[n]), short)
    end = next((n for n in range(short - begin) if student[-1 - n] != teacher[-1 - n]), short - begin)
    own, others = student[begin : len(student) - end], teacher[begin : len(teacher) - end]
    if max(len(own), len(others)) <= LONGEST:
        blocks = SequenceMatcher(None, own, others, autojunk=False).get_opcodes()
    else:
        blocks = [("replace", 0, len(own), 0, len(others))]
    pieces = [("same", student[:begin])]
    for kind, a, b, c, d in blocks:
        pieces += [("same", own[a:b])] if kind == "equal" else [("student", own[a:b]), ("teacher", others[c:d])]
    pieces.append(("same", student[len(student) - end :]))
    return [(who, decode(ids)) for who, ids in pieces if ids]
