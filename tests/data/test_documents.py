"""Documents: which files are read, what is refused, and where a text is cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdistill.data.documents import passages, read_documents
from selfdistill.errors import DataError


def words(text: str) -> int:
    return len(text.split())


def test_files_and_folders_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.md", "deep/a.TXT", "skipped.pdf"):
        (tmp_path / name).write_text(f"text of {name}")
    assert list(read_documents([tmp_path]).values()) == ["text of b.md", "text of deep/a.TXT"]
    assert list(read_documents([tmp_path / "skipped.pdf"]).values()) == ["text of skipped.pdf"], "a file that is named"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.md", None, "nowhere.md: No such file"),
        ("empty.md", b" \n", "the document is empty"),
        ("photo.md", b"\x89PNG\r\n\x1a\n\x00\xff", "the byte 0x89"),
        ("zeros.txt", b"some\0text", "a zero byte"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_documents([tmp_path / name])


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "paper.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"no \.md or \.txt file in"):
        read_documents([tmp_path])


def test_a_long_document_is_cut_between_paragraphs_then_sentences_then_words() -> None:
    text = "# Reeds\n\nOne two three. Four five six.\n\nSeven eight.\n\nnine " + "ten " * 12
    found = [passage.text for passage in passages({"reeds.md": text}, words, 8)]
    assert all(part.startswith("# Reeds\n\n") for part in found), "every part names its document"
    bodies = [part.removeprefix("# Reeds\n\n") for part in found]
    assert bodies[:2] == ["One two three. Four five six.", "Seven eight."]
    assert " ".join(bodies).split() == text.removeprefix("# Reeds").split(), "nothing is lost"
    assert max(map(words, found)) <= 8


def test_sentences_stand_behind_the_title_of_their_passage() -> None:
    (only,) = passages({"reeds.md": "# Reeds\n\nOne two. Three?\n\n## Part\n\n- four\n- five six"}, words, 50)
    assert only.title == "Reeds"
    assert only.sentences == [f"# Reeds\n\n{text}" for text in ("One two.", "Three?", "- four", "- five six")]


def test_a_document_that_fits_is_one_passage_and_a_file_name_is_a_title() -> None:
    (only,) = passages({"docs/river.txt": "It is long.\n\n## Mouth\n\nIt is wide."}, words, 50)
    assert (only.id, only.text) == ("0001-001", "# Mouth\n\nIt is long.\n\n## Mouth\n\nIt is wide.")
    (only,) = passages({"docs/river.txt": "It is long."}, words, 50)
    assert only.text == "# river\n\nIt is long."
