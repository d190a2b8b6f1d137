"""Documents as passages that a model can read: files of text, their titles, and where they are cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfdistill.errors import DataError
from selfdistill.files import read_text

SUFFIXES = (".md", ".txt")
SENTENCE = r"(?<=[.!?…])\s+"  # between two sentences
# Where a text may be cut, the best place first: paragraphs, lines, sentences, words.
CUTS = (r"\n\s*\n", r"\n", SENTENCE, r"\s+")
JOINED = ("\n\n", "\n", " ", " ")


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document, as the teacher reads it: behind the title."""

    id: str
    text: str

    @property
    def title(self) -> str:
        """The heading of the document, or the name of its file."""
        return self.text.partition("\n")[0].removeprefix("# ")

    @property
    def sentences(self) -> list[str]:
        """Its lines and sentences, each behind the title; headings have none of their own."""
        head, _, body = self.text.partition("\n\n")
        lines = [line for line in body.split("\n") if line.strip() and not line.startswith("#")]
        return [f"{head}\n\n{each}" for line in lines for each in re.split(SENTENCE, line) if each.strip()]


def read_documents(paths: Sequence[str | Path]) -> dict[str, str]:
    """The texts of files, and of the .md and .txt files of folders, by their names. Raises `DataError` for a path that
    is missing, a folder without such a file, and a file that is empty or no text."""
    found = dict[str, str]()
    for path in map(Path, paths):
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not files:
            do = "name the files, or give it .md or .txt files; other formats have to be converted to text first"
            raise DataError("the folder has no document", got=f"no {' or '.join(SUFFIXES)} file in {path}", do=do)
        for file in files:
            text = read_text(file, what="the document", do="check the name")
            if "\0" in text:
                do = "convert it to plain text first"
                raise DataError("the document is no text", got=f"{file}: it has a zero byte", do=do)
            if not text.strip():
                raise DataError("the document is empty", got=file, do="leave it out")
            found[str(file)] = text
    return found


def passages(documents: dict[str, str], tokens: Callable[[str], int], longest: int) -> list[Passage]:
    """Every document in parts of at most `longest` tokens, each with its title. A document that fits is one part."""
    found = list[Passage]()
    for number, (name, text) in enumerate(documents.items(), 1):
        heading = re.search(r"^#+[ \t]+(.+)$", text, re.MULTILINE)
        head = f"# {heading[1].strip() if heading else Path(name).stem}\n\n"
        if heading and not text[: heading.start()].strip():
            text = text[heading.end() :]
        parts = _parts(text.strip(), tokens, max(longest - tokens(head), longest // 2))
        bodies = [part for part in parts if not all(line.startswith("#") for line in part.split("\n") if line.strip())]
        found += [Passage(f"{number:04}-{place:03}", head + body) for place, body in enumerate(bodies, 1)]
    return found


def _parts(text: str, tokens: Callable[[str], int], longest: int, cut: int = 0) -> Iterator[str]:
    """As much as fits at a time, cut at the best places; a piece that no cut makes short enough stays as it is."""
    if tokens(text) <= longest or cut == len(CUTS):
        yield text
        return
    part = ""
    for piece in filter(str.strip, re.split(CUTS[cut], text)):
        whole = part + JOINED[cut] + piece if part else piece
        if tokens(whole) <= longest:
            part = whole
            continue
        if part:
            yield part
        *done, part = _parts(piece, tokens, longest, cut + 1)
        yield from done
    if part:
        yield part
