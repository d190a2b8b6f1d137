"""The page of an answer's credit: whole, escaped, self-contained, and within reach of a keyboard."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from selfdistill.errors import RunError
from selfdistill.runs.credit import Alternative, AnswerCredit, ErrorVisibility, TokenCredit
from selfdistill.types import Context, Message
from selfdistill.view.credit import credit_page, percent, shown, strength, table_of, write_credit_page

VOID = {"meta", "br", "link", "img", "input", "hr"}
NASTY = ("<b>&\"'", " x", "\n", "", "</script>")


def found(**changes: object) -> AnswerCredit:
    others = (Alternative('"<', 0.25, 0.75), Alternative("&amp;", 0.5, 0.0004))
    values = zip(NASTY, (-3.0, 0.01, 1.0, 0.0, -9.0), strict=True)
    parts = {
        "model": "m<1>",
        "question": (Message("user", "1 < 2 & 3?"),),
        "context": Context("feedback", feedback='Say "<i>".'),
        "tokens": tuple(TokenCredit(text, -1.0, u - 1.0, others, own=u / 2) for text, u in values),
        "cut": False,
        "error_visibility": ErrorVisibility(True, 2.0, (1.0,) * 19),
        "advantage": None,
    }
    return AnswerCredit(**{**parts, **changes})  # type: ignore[arg-type]


class Page(HTMLParser):
    """Elements in order, and whether every one that opens is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)

    def having(self, **wanted: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.elements if all(attrs.get(key) == wanted[key] for key in wanted)]


def test_the_page_is_whole_and_shows_every_text_as_it_is() -> None:
    page = Page(credit_page(found()))
    assert page.open == []
    text = "".join(page.texts)
    for said in ("m<1>", "1 < 2 & 3?", 'Say "<i>".', "<b>&\"'", "</script>", "&amp;", "◌"):
        assert said in text
    assert {tag for tag, _ in page.elements} & {"b", "script"} == {"b", "script"}
    assert [tag for tag, _ in page.elements].count("script") == 1, "a token opened no script of its own"


def test_nothing_is_fetched_from_anywhere() -> None:
    html = credit_page(found())
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<img|<iframe", html)
    page = Page(html)
    assert not [attrs for _, attrs in page.elements if {"src", "href"} & attrs.keys()]
    assert page.having(**{"http-equiv": "Content-Security-Policy"})[0]["content"].startswith("default-src 'none'")


def test_each_token_is_within_reach_and_described_by_its_numbers() -> None:
    page = Page(credit_page(found()))
    tokens = page.having(role="listitem")
    assert len(tokens) == len(NASTY)
    tips = {attrs["id"] for attrs in page.having(role="tooltip")}
    for token in tokens:
        assert token["tabindex"] == "0"
        assert token["aria-describedby"] in tips
    classes = [set(token["class"].split()) for token in tokens]
    assert classes[0] == {"token", "less", "halved"}
    assert classes[1] == {"token"}, "next to nothing: no colour"
    assert classes[2] == {"token", "more", "halved"}
    assert tokens[0]["style"] == "--strength:0.60", "three of four nats, at most 0.8"
    assert tokens[4]["style"] == "--strength:0.80"
    text = "".join(page.texts)
    assert "u = -3.00, its own part -1.50" in text
    assert "75.0 %" in text
    assert "< 0.1 %" in text


def test_light_and_dark_and_words_for_those_who_see_no_colours() -> None:
    html = credit_page(found())
    assert "color-scheme: light dark" in html
    assert "prefers-color-scheme: dark" in html
    assert "less likely for the teacher" in html
    assert found().conclusion.split("(")[0].strip()[:20] in html
    assert "1 in 20" in html


def test_what_is_not_there_is_not_shown() -> None:
    plain = tuple(TokenCredit(token.text, -1.0, -2.0, ()) for token in found().tokens)
    html = credit_page(found(tokens=plain, error_visibility=None))
    assert "own" not in [cell for _, cell in re.findall(r"<(th)[^>]*>([^<]*)</th>", html)]
    assert "not tested" in html
    assert "GRPO" not in html
    assert "(cut to fit)" not in html
    full = credit_page(found(advantage=-1.0, cut=True))
    assert "GRPO: every token gets the same, A = -1.00" in full
    assert "Context: feedback (cut to fit)" in full
    assert full.count("--strength:0.80") == html.count("--strength:0.80") + 2


def test_numbers_of_a_token() -> None:
    token = TokenCredit(" +", -0.25, -3.25, (Alternative("))", 0.04, 0.9), Alternative("x", 0.0, 0.0001)), 0.5, -2.0)
    assert token.log_ratio == -3.0
    header, (row,) = table_of(found(tokens=(token,)))
    assert header[4:6] == ["own", "recorded"]
    assert row == ["·+", "-0.25", "-3.25", "-3.00", "+0.50", "-2.00", ")) 4.0 → 90.0"]
    header, (row, _) = table_of(found(tokens=(replace(token, own=None), replace(token, own=None, recorded=None))))
    assert "own" not in header
    assert row[4] == "-2.00"
    header, (row,) = table_of(found(tokens=(replace(token, own=None, recorded=None),)))
    assert len(header) == len(row) == 5


@pytest.mark.parametrize(
    ("text", "quoted"), [("", "◌"), ("  ", "··"), (" a b ", "·a b·"), ("\n  ", "↵··"), ("\t", "⇥")]
)
def test_what_cannot_be_seen_is_shown(text: str, quoted: str) -> None:
    assert shown(text) == quoted


def test_colours_grow_to_four_nats() -> None:
    assert [strength(u) for u in (0.04, -2.0, 4.0, -40.0)] == [0.0, 0.5, 1.0, 1.0]
    assert (percent(0.5), percent(0.00001)) == ("50.0 %", "< 0.1 %")


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    assert write_credit_page(found(), tmp_path / "a.html").read_text(encoding="utf-8").endswith("</html>\n")
    with pytest.raises(RunError, match="cannot be written"):
        write_credit_page(found(), tmp_path / "missing" / "a.html")
