"""The page of an answer's credit in a real browser: what the pointer and the keyboard show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from selfdistill.runs.credit import Alternative, AnswerCredit, ErrorVisibility, TokenCredit
from selfdistill.types import Context, Message
from selfdistill.view.credit import credit_page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=20000",
)  # fmt: skip
LOOK = """<script>
const tip = (place) => document.getElementById('t' + place);
const shown = () => tokens.map((_, place) => getComputedStyle(tip(place)).display);
const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: name, bubbles: true}));
const look = () => {
  if (!document.hasFocus()) { setTimeout(look, 20); return; }  // a page has the focus some time after it is loaded
  const told = {before: shown()};
  tokens[0].focus(); told.first = shown();
  key('ArrowRight'); told.second = shown();
  tokens[tokens.length - 1].focus(); told.right = tip(tokens.length - 1).getBoundingClientRect().right;
  told.width = document.documentElement.clientWidth;
  key('Escape'); told.hidden = shown();
  document.title = JSON.stringify(told);
};
look();
</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


def test_numbers_stand_under_the_focus_within_the_page_and_escape_hides_them(tmp_path: Path) -> None:
    others = (Alternative("a rather long alternative to what was said", 0.25, 0.75),)
    tokens = tuple(TokenCredit(f"word{place} ", -1.0, -1.5, others, own=None) for place in range(9))
    found = AnswerCredit(
        model="m", question=(Message("user", "?"),), context=Context("feedback", feedback="no"), tokens=tokens,
        cut=False, error_visibility=ErrorVisibility(True, 2.0, (1.0,) * 19), advantage=None,
    )  # fmt: skip
    file = tmp_path / "page.html"
    file.write_text(credit_page(found).replace("</body>", LOOK + "</body>"), encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=700,600", "--dump-dom"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=60, check=True)  # type: ignore[list-item]
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    told = json.loads(title[1])
    assert told["before"] == ["none"] * 9
    assert told["first"] == ["block"] + ["none"] * 8
    assert told["second"] == ["none", "block"] + ["none"] * 7
    assert told["right"] <= told["width"], "the last one is moved into sight"
    assert told["hidden"] == ["none"] * 9
