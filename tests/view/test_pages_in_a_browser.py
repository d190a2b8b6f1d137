"""The pages of `selfdistill view` in a real browser: `make browser-test`. Skipped without playwright and Chromium."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from site_runs import HOSTILE, add_step, make_run, make_site, row

from selfdistill.runs import RunDir
from selfdistill.runs.store import ROLLOUTS
from selfdistill.view.site.export import export

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make browser-test")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
AXE = (Path(__file__).parent / "axe-core-4.14.1.min.js").read_text(encoding="utf-8")
PAGES = {
    "runs": "", "run": "run/new", "step": "run/new/step/2", "all steps": "run/new/step/all?sort=-against",
    "groups": "run/new/step/2?view=groups", "group": "run/new/step/2/group/2-1",
    "rollout": "run/new/step/1/rollout/1-0-1",
    "hostile": "run/new/step/2/rollout/2-1-1", "turns": "run/new/step/2/rollout/2-1-2",
    "dropped": "run/new/step/1/rollout/1-0-0", "old run": "run/old", "old rollout": "run/old/step/1/rollout/1-0-0",
    "compare": "compare?runs=new%7Cold", "search": "search/search", "attempts": "attempts/search%2F000-task-0",
    "journal": "journal/journal.db", "exchanges": "journal/journal.db/c-hostile",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    """The address of a server, which Ctrl-C ends without an error."""
    command = [sys.executable, "-m", "selfdistill", "view", str(site), "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0, process.stderr.read() if process.stderr else ""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that may say nothing of errors, and load nothing from elsewhere."""
    opened = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    opened.set_default_timeout(8000)
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.on(
        "request",
        lambda request: (
            None if request.url.startswith(("http://127.0.0.1", "file:", "data:")) else wrong.append(request.url)
        ),
    )
    yield opened
    assert not wrong
    opened.context.close()


def show(page: Any, url: str, name: str) -> None:
    page.goto("about:blank")
    page.goto(f"{url}#/{PAGES.get(name, name)}")
    page.wait_for_selector("main h1")
    sync_api.expect(page.locator("main")).not_to_contain_text("Loading…", timeout=8000)


def expect(page: Any, selector: str, count: int) -> None:
    sync_api.expect(page.locator(selector)).to_have_count(count, timeout=8000)


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_shown_escaped_narrow_and_accessible(page: Any, url: str, name: str) -> None:
    for scheme, width in (("light", 1280), ("dark", 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        show(page, url, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.hacked") is None
        assert page.locator("main img, main script").count() == 0
        page.evaluate(AXE)
        rules = "{runOnly: ['color-contrast']}" if scheme == "dark" else "{resultTypes: ['violations']}"
        found = page.evaluate(f"axe.run(document, {rules})")["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious]


def test_hostile_text_is_seen_as_it_is_written(page: Any, url: str) -> None:
    show(page, url, "hostile")
    text = page.locator(".tokens").inner_text()
    assert "<img src=x" in text
    assert "⟨202E⟩abc⟨202C⟩" in text
    assert "⟨001B⟩[31m" in text


def test_the_table_of_runs_leads_to_a_comparison(page: Any, url: str) -> None:
    show(page, url, "runs")
    assert page.locator("tr", has_text="0.100 → 0.800").count() == 1
    page.get_by_label("filter").fill("gibberish")
    page.keyboard.press("Enter")
    expect(page, "a[data-row]", 0)
    page.get_by_label("filter").fill("")
    page.keyboard.press("Enter")
    page.get_by_label("compare new").check()
    page.get_by_label("compare old").check()
    page.get_by_role("link", name="Compare 2 runs").click()
    page.wait_for_selector("text=2 runs beside one another")
    page.get_by_label("along").select_option("tokens")
    assert "x=tokens" in page.url
    page.wait_for_selector("[aria-label^='Reward over tokens']")


def shown(page: Any) -> list[str]:
    return list(page.locator("a[data-row]").all_inner_texts())


def test_a_step_is_filtered_and_sorted_and_its_link_is_kept(page: Any, url: str) -> None:
    show(page, url, "step")
    assert len(shown(page)) == 8
    assert "24 rows" in page.locator("#complete").inner_text()
    page.get_by_label("sort by").select_option("-against")
    assert shown(page)[:2] == ["2-0-3", "2-1-3"]
    page.get_by_label("outcome").select_option("solved")
    assert shown(page) == ["2-0-0", "2-1-0"]
    page.get_by_label("outcome").select_option("")
    page.get_by_label("dropped").select_option("only_success")
    assert shown(page) == ["2-0-0", "2-1-0"]
    page.get_by_label("dropped").select_option("")
    page.get_by_label("teacher read").select_option("solution")
    assert len(shown(page)) == 6
    page.get_by_label("text").fill("onerror")
    page.keyboard.press("Enter")
    expect(page, "a[data-row]", 1)
    page.reload()
    page.wait_for_selector("a[data-row]")
    assert shown(page) == ["2-1-1"], "the address holds the filters"
    page.get_by_label("text").fill("")
    page.keyboard.press("Enter")
    expect(page, "a[data-row]", 6)
    page.get_by_label("tokens from").fill("100")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Nothing matches")
    show(page, url, "step")
    page.get_by_role("button", name="Σ u").click()
    page.get_by_label("show").select_option("groups")
    page.wait_for_selector("text=1 of 4")
    assert shown(page) == ["2-0", "2-1"]


def test_a_group_shows_who_was_whose_context_and_what_differs(page: Any, url: str) -> None:
    show(page, url, "run/new/step/1/group/1-0")
    cards = page.locator("article")
    assert cards.count() == 4
    assert "Read by the teachers of 1-0-1, 1-0-2, 1-0-3" in cards.nth(0).inner_text()
    assert "Its teacher read the answer of 1-0-0" in cards.nth(2).inner_text()
    assert cards.nth(2).locator("mark").all_inner_texts() == ["2"]
    page.get_by_label("differences from").select_option("none")
    expect(page, "article mark", 0)


def test_a_rollout_shows_its_credit_and_what_was_read(page: Any, url: str) -> None:
    show(page, url, "rollout")
    spans = page.locator(".tokens .t")
    assert spans.count() == 9
    assert spans.nth(7).get_attribute("class") == "t less s7 halved"
    assert spans.nth(3).get_attribute("class") == "t more s2 doubled"
    assert spans.nth(0).get_attribute("class") == "t "
    spans.nth(7).hover()
    numbers = page.locator(".numbers").inner_text()
    assert "−3.50 nats" in numbers
    assert "60.7 %" in numbers
    assert "1.8 %" in numbers
    note = page.locator(".note").first.inner_text()
    assert "GRPO gives all 9 tokens −0.25." in note
    assert "2 of the 5 go another way than GRPO, by up to 0.9 nats" in note
    assert "Correct solution:" in page.get_by_label("teacher's prompt before the answer").locator("mark").inner_text()
    page.get_by_label("colour by").select_option("grpo")
    assert "less s2" in str(spans.nth(0).get_attribute("class"))
    page.get_by_label("colour by").select_option("p")
    assert "rare s1" in str(spans.nth(0).get_attribute("class"))


def test_keys_lead_through_the_pages(page: Any, url: str) -> None:
    show(page, url, "step")
    press = page.keyboard.press
    for key in "jjk":
        press(key)
    assert page.evaluate("document.activeElement.textContent") == "2-0-0"
    press("j")
    press("Enter")
    page.wait_for_selector("h1:has-text('Rollout 2-0-1')")
    page.wait_for_selector(".tokens .t")
    press("ArrowRight")
    press("ArrowRight")
    assert "token 2 of 9" in page.locator(".numbers").inner_text()
    assert "token=2" in page.url
    press("s")
    assert "token 8 of 9" in page.locator(".numbers").inner_text()
    press("ArrowLeft")
    assert "token 7 of 9" in page.locator(".numbers").inner_text()
    press("c")
    assert "color=grpo" in page.url
    press("n")
    page.wait_for_selector("h1:has-text('Rollout 2-0-2')")
    press("p")
    page.wait_for_selector("h1:has-text('Rollout 2-0-1')")
    page.wait_for_selector(".tokens .t")
    press("g")
    page.wait_for_selector("h1:has-text('Group 2-0')")
    press("u")
    page.wait_for_selector("h1:has-text('Step 2 of new')")
    press("n")
    page.wait_for_selector("h1:has-text('Step 3 of new')")
    press("/")
    assert page.evaluate("document.activeElement.className") == "filter"
    press("Escape")
    press("?")
    page.wait_for_selector("section[aria-label=keys]")
    press("Escape")
    assert page.locator("section[aria-label=keys]").count() == 0
    press("d")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    press("u")
    press("u")
    page.wait_for_selector("h1:has-text('Runs')")


def test_a_run_that_is_written_is_followed(page: Any, url: str, site: Path) -> None:
    run = make_run(site / "growing", 1, finished=False)
    show(page, url, "run/growing")
    assert "being written" in page.locator("#complete").inner_text()
    with RunDir.resume(run, 1) as again:
        add_step(again, 2)
    page.wait_for_selector("a[data-row]:has-text('2')")
    page.wait_for_selector("#complete:has-text('16 rows')")
    with (run / ROLLOUTS).open("ab") as file:
        file.write(b'{"step":3,"uid":"3-0-0","ta')
    page.wait_for_selector("#complete:has-text('last line torn')")


def test_a_run_that_has_just_begun_is_shown_along_every_axis(page: Any, url: str, site: Path) -> None:
    make_run(site / "begun", 0, finished=False)
    for axis in ("steps", "completions", "tokens", "time"):
        show(page, url, f"run/begun?x={axis}")
        assert "0 steps of 3" in page.locator("main").inner_text()
        show(page, url, f"compare?runs=begun%7Cnew&x={axis}")
    show(page, url, "run/begun/step/1")
    assert "Nothing matches" in page.locator("main").inner_text()


def test_many_tokens_are_drawn_soon(page: Any, url: str, site: Path) -> None:
    """8,192 tokens; the limit of 300 ms is for a machine that does nothing else."""
    many = replace(row(1, 0, 1), token_texts=(" word",) * 8192, token_ids=(5,) * 8192, logprobs=(-0.5,) * 8192)
    with RunDir.create(site / "long", {"settings": {"model": "m", "method": "sdpo", "env": "verbs"}}) as run:
        run.append(replace(many, log_ratio=tuple((n % 17 - 8) / 2 for n in range(8192))))
    show(page, url, "run/long/step/1/rollout/1-0-1")
    start = time.perf_counter()
    page.evaluate("location.hash += '?color=p'")
    expect(page, ".tokens .rare", 8192)
    assert time.perf_counter() - start < 3


def test_a_page_in_a_file_shows_the_same(page: Any, site: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    export(site / "new", file, [1, 2])
    page.goto(file.as_uri())
    page.wait_for_selector("h1:has-text('new')")
    assert shown(page) == ["1", "2"], "steps that are not in the file have no link"
    page.get_by_role("link", name="2", exact=True).click()
    page.get_by_label("text").fill("onerror")
    page.keyboard.press("Enter")
    expect(page, "a[data-row]", 1)
    page.locator("a[data-row]").click()
    page.wait_for_selector(".tokens .t")
    assert HOSTILE[:20] in page.locator(".tokens").inner_text()
    page.wait_for_selector("mark:has-text('Correct solution:')")
    assert page.evaluate("window.hacked") is None
    page.keyboard.press("g")
    page.wait_for_selector("h1:has-text('Group 2-1')")
