"""What tests of the pages in a browser share: the pages, and ways to them."""

from __future__ import annotations

from typing import Any

PAGES = {
    "runs": "", "run": "run/new", "step": "run/new/step/2", "all steps": "run/new/step/all?sort=-against",
    "groups": "run/new/step/2?view=groups", "group": "run/new/step/2/group/2-1",
    "rollout": "run/new/step/1/rollout/1-0-1",
    "hostile": "run/new/step/2/rollout/2-1-1", "turns": "run/new/step/2/rollout/2-1-2",
    "dropped": "run/new/step/1/rollout/1-0-0", "old run": "run/old", "old rollout": "run/old/step/1/rollout/1-0-0",
    "compare": "compare?runs=new%7Cold", "search": "search/search", "attempts": "attempts/search%2F000-task-0",
    "journal": "journal/journal.db", "exchanges": "journal/journal.db/c-hostile",
}  # fmt: skip
PATIENCE_MS = 20_000
WALK = """hash => new Promise(done => {
  const drawn = () => requestAnimationFrame(() => requestAnimationFrame(done));
  if (location.hash === hash) return drawn();
  addEventListener("hashchange", drawn, { once: true });
  location.hash = hash;
})"""


def show(page: Any, name: str) -> None:
    """Walks to a page, and waits until all of it is there."""
    from playwright.sync_api import expect

    page.evaluate(WALK, f"#/{PAGES.get(name, name)}")
    page.wait_for_selector("main h1")
    expect(page.locator("main")).not_to_contain_text("Loading…", timeout=PATIENCE_MS)


def counted(page: Any, selector: str, count: int) -> None:
    """Waits until so many elements are there."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(count, timeout=PATIENCE_MS)


def rows(page: Any) -> list[str]:
    """The texts of the links of a table's rows."""
    return list(page.locator("a[data-row]").all_inner_texts())
