"""Every page of `selfdistill view` without serious findings of axe-core, in both schemes, and from the command line:
`make browser-test`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from browser_parts import PAGES, show

AXE = (Path(__file__).parent / "axe-core-4.14.1.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible(page: Any, name: str) -> None:
    for scheme, width, rules in (
        ("light", 1280, "{resultTypes: ['violations']}"),
        ("dark", 390, "{runOnly: ['color-contrast']}"),
    ):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        show(page, name)
        if not page.evaluate("'axe' in window"):
            page.evaluate(AXE)
        found = page.evaluate(f"axe.run(document, {rules})")["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious]


def test_the_command_serves_until_ctrl_c(page: Any, site: Path) -> None:
    command = [sys.executable, "-m", "selfdistill", "view", str(site), "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    page.goto(process.stdout.readline().strip())
    page.wait_for_selector("a[data-row]:text-is('new')")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0, process.stderr.read() if process.stderr else ""
