"""The page of an answer's credit in a real browser: what the pointer and the keyboard show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfdistill.runs.credit import Alternative, AnswerCredit, ErrorVisibility, TokenCredit
from selfdistill.types import Context, Message
from selfdistill.view.credit import credit_page

LOOK = """() => {
  const tip = (place) => document.getElementById('t' + place);
  const shown = () => tokens.map((_, place) => getComputedStyle(tip(place)).display);
  const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: name, bubbles: true}));
  const told = {before: shown()};
  tokens[0].focus(); told.first = shown();
  key('ArrowRight'); told.second = shown();
  tokens[tokens.length - 1].focus(); told.right = tip(tokens.length - 1).getBoundingClientRect().right;
  told.width = document.documentElement.clientWidth;
  key('Escape'); told.hidden = shown();
  return told;
}"""


def test_numbers_stand_under_the_focus_within_the_page_and_escape_hides_them(browser: Any, tmp_path: Path) -> None:
    others = (Alternative("a rather long alternative to what was said", 0.25, 0.75),)
    tokens = tuple(TokenCredit(f"word{place} ", -1.0, -1.5, others, own=None) for place in range(9))
    found = AnswerCredit(
        model="m", question=(Message("user", "?"),), context=Context("feedback", feedback="no"), tokens=tokens,
        cut=False, error_visibility=ErrorVisibility(True, 2.0, (1.0,) * 19), advantage=None,
    )  # fmt: skip
    file = tmp_path / "page.html"
    file.write_text(credit_page(found), encoding="utf-8")
    page = browser.new_page(viewport={"width": 700, "height": 600})
    page.goto(file.as_uri())
    page.wait_for_function("document.hasFocus()")  # it has the focus some time after it is loaded
    told = page.evaluate(LOOK)
    assert told["before"] == ["none"] * 9
    assert told["first"] == ["block"] + ["none"] * 8
    assert told["second"] == ["none", "block"] + ["none"] * 7
    assert told["right"] <= told["width"], "the last one is moved into sight"
    assert told["hidden"] == ["none"] * 9
