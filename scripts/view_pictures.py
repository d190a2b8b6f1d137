"""Makes docs/view-rollout.png and docs/view-compare.png: drives `selfdistill view` in Chromium (needs playwright).

    python scripts/view_pictures.py --rollout runs/mbpp 1 1-1-2 --compare runs sdpo grpo

The pictures in the README are of two SDPO steps of Qwen2.5-Coder-0.5B on MBPP (EXPERIMENTS.md has the command), and of
`selfdistill train method=METHOD env=verbs steps=12 tasks_per_step=8 optimiser.lr=0.0005 optimiser.warmup_steps=0
evaluation.every=4 evaluation.tasks=24 guards.action=off guards.preflight=off out=runs/METHOD` for sdpo and grpo.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parent.parent / "docs"
WIDTH = 1280


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rollout", nargs=3, metavar=("RUN", "STEP", "UID"))
    parser.add_argument("--token", type=int, default=1, help="token whose numbers are shown, from 1")
    parser.add_argument("--compare", nargs="+", metavar=("DIR", "NAME"), help="a directory, and runs in it")
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1200}, color_scheme="light")
        if given.rollout:
            run, step, uid = given.rollout
            with served(Path(run)) as url:
                name = Path(run).absolute().name
                page.goto(f"{url}#/run/{quote(name, '')}/step/{step}/rollout/{uid}?token={given.token}")
                page.wait_for_selector("text=Teacher read before the answer")
                page.evaluate("scrollTo(0, 0)")
                picture(page, "view-rollout.png", 1180)
        if given.compare:
            with served(Path(given.compare[0])) as url:
                page.goto(f"{url}#/compare?runs={quote('|'.join(given.compare[1:]), '')}&x=completions")
                page.wait_for_selector("text=Tasks that they solve")
                picture(page, "view-compare.png", 1000)
        browser.close()


def picture(page: Page, name: str, height: int) -> None:
    """The upper part of a page."""
    page.wait_for_timeout(500)
    page.screenshot(path=DOCS / name, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The address of the pages of a directory."""
    command = [sys.executable, "-m", "selfdistill", "view", str(path), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
