"""The pages of `selfdistill view` in a real browser, on one page of it. Skipped without playwright and Chromium; what
takes longer stands in `long_browser_checks.py`, for `make browser-test`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser_parts import PAGES, counted, rows, show
from site_runs import HOSTILE, add_step, make_run, row

from selfdistill.runs import RunDir
from selfdistill.runs.store import ROLLOUTS
from selfdistill.view.site import answers
from selfdistill.view.site.export import export

WIDE_PLOTS = """document.querySelectorAll(".u-wrap").forEach(plot => { plot.style.width = "900px"; })"""
"""Makes each plot as wide as it was in a wide window: a plot is drawn again only some time after the window changed."""


def test_every_page_is_shown_escaped_wide_and_narrow(page: Any) -> None:
    for name in PAGES:
        page.set_viewport_size({"width": 1280, "height": 900})
        show(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280, name
        page.set_viewport_size({"width": 390, "height": 900})
        page.evaluate(WIDE_PLOTS)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert page.evaluate("window.hacked") is None, name
        assert page.locator("main img, main script").count() == 0, name


def test_hostile_text_is_seen_as_it_is_written(page: Any) -> None:
    show(page, "hostile")
    text = page.locator(".tokens").inner_text()
    assert "<img src=x" in text
    assert "⟨202E⟩abc⟨202C⟩" in text
    assert "⟨001B⟩[31m" in text


def test_the_table_of_runs_leads_to_a_comparison(page: Any) -> None:
    show(page, "runs")
    assert page.locator("tr", has_text="0.100 → 0.800").count() == 1
    page.get_by_label("filter").fill("gibberish")
    page.keyboard.press("Enter")
    counted(page, "a[data-row]", 0)
    page.get_by_label("filter").fill("")
    page.keyboard.press("Enter")
    page.get_by_label("compare new").check()
    page.get_by_label("compare old").check()
    page.get_by_role("link", name="Compare 2 runs").click()
    page.wait_for_selector("text=2 runs beside one another")
    counted(page, "table a[data-row]", 6)
    differ = page.get_by_label("rollouts that differ most").locator("tbody tr").first
    assert differ.inner_text().split("\t") == ["1-0-3 of new", "task-0", "✗ 0", "−0.25", "): +2.70"]
    page.get_by_label("along").select_option("tokens")
    assert "x=tokens" in page.url
    page.wait_for_selector("[aria-label^='Reward over tokens']")
    differ.locator("a").click()
    page.wait_for_selector(".tokens .t")
    assert "token 4 of 9" in page.locator(".numbers").inner_text()


def test_a_step_is_filtered_and_sorted_and_its_link_is_kept(page: Any) -> None:
    show(page, "step")
    assert len(rows(page)) == 8
    assert "24 rows" in page.locator("#complete").inner_text()
    page.get_by_label("sort by").select_option("-against")
    assert rows(page)[:2] == ["2-0-3", "2-1-3"]
    page.get_by_label("outcome").select_option("solved")
    assert rows(page) == ["2-0-0", "2-1-0"]
    page.get_by_label("outcome").select_option("")
    page.get_by_label("dropped").select_option("only_success")
    assert rows(page) == ["2-0-0", "2-1-0"]
    page.get_by_label("dropped").select_option("")
    page.get_by_label("teacher read").select_option("solution")
    assert len(rows(page)) == 6
    page.get_by_label("text").fill("OnError")
    page.keyboard.press("Enter")
    counted(page, "a[data-row]", 1)
    page.reload()
    page.wait_for_selector("a[data-row]")
    assert rows(page) == ["2-1-1"], "the address holds the filters"
    page.get_by_label("text").fill("")
    page.keyboard.press("Enter")
    counted(page, "a[data-row]", 6)
    page.get_by_label("tokens from").fill("100")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Nothing matches")
    show(page, "step")
    page.get_by_role("button", name="Σ u").click()
    page.get_by_label("show").select_option("groups")
    page.wait_for_selector("text=1 of 4")
    assert rows(page) == ["2-0", "2-1"]


def test_a_group_shows_who_was_whose_context_and_what_differs(page: Any) -> None:
    show(page, "run/new/step/1/group/1-0")
    cards = page.locator("article")
    assert cards.count() == 4
    assert "Read by the teachers of 1-0-1, 1-0-2, 1-0-3" in cards.nth(0).inner_text()
    assert "Its teacher read the answer of 1-0-0" in cards.nth(2).inner_text()
    assert cards.nth(2).locator("mark").all_inner_texts() == ["2"]
    page.get_by_label("differences from").select_option("none")
    counted(page, "article mark", 0)


def test_a_rollout_shows_its_credit_and_what_was_read(page: Any) -> None:
    show(page, "rollout")
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
    page.get_by_label("colour by").select_option("entropy")
    assert [spans.nth(n).get_attribute("class") for n in (0, 4, 8)] == ["t ", "t rare s4", "t rare s8 halved"]
    assert "3.5 nats" in page.locator(".numbers").inner_text()


def test_keys_lead_through_the_pages(page: Any) -> None:
    show(page, "step")
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
    press("d")
    press("d")
    press("u")
    page.wait_for_selector("h1:text-is('new')")
    press("u")
    page.wait_for_selector("h1:has-text('Runs')")


def test_a_key_counts_as_soon_as_its_page_is_seen(page: Any) -> None:
    show(page, "step")
    page.evaluate("""() => new MutationObserver((_, observer) => {
        if (!document.querySelector("h1")?.textContent.startsWith("Step 3 of new")) return;
        observer.disconnect();
        dispatchEvent(new KeyboardEvent("keydown", {key: "n"}));
    }).observe(document.body, {childList: true, subtree: true, characterData: true})""")
    page.keyboard.press("n")
    page.wait_for_selector("h1:has-text('Step 4 of new')")


def test_a_run_that_is_written_is_followed(page: Any, site: Path) -> None:
    run = make_run(site / "growing", 1, finished=False)
    show(page, "run/growing")
    page.wait_for_selector("#complete:has-text('being written')")
    with RunDir.resume(run, 1) as again:
        add_step(again, 2)
    page.wait_for_selector("a[data-row]:has-text('2')")
    page.wait_for_selector("#complete:has-text('16 rows')")
    with (run / ROLLOUTS).open("ab") as file:
        file.write(b'{"step":3,"uid":"3-0-0","ta')
    page.wait_for_selector("#complete:has-text('last line torn')")


def test_a_run_that_has_just_begun_is_shown_along_every_axis(page: Any, site: Path) -> None:
    make_run(site / "begun", 0, finished=False)
    for axis in ("steps", "completions", "tokens", "time"):
        show(page, f"run/begun?x={axis}")
        assert "0 steps of 3" in page.locator("main").inner_text()
        show(page, f"compare?runs=begun%7Cnew&x={axis}")
    show(page, "run/begun/step/1")
    assert "Nothing matches" in page.locator("main").inner_text()


def test_tokens_out_of_sight_are_drawn_when_they_come_near(page: Any, site: Path) -> None:
    texts = tuple("\n" if n % 20 == 19 else f" word{n}" for n in range(8192))
    long = replace(row(1, 0, 1), token_texts=texts, token_ids=(5,) * 8192, logprobs=(-3.0,) * 8192, entropy=())
    with RunDir.create(site / "long", {"settings": {"model": "m", "method": "sdpo", "env": "verbs"}}) as run:
        run.append(replace(long, log_ratio=tuple((n % 17 - 8) / 2 for n in range(8192))))
    show(page, "run/long/step/1/rollout/1-0-1?color=p")
    assert 300 < page.locator(".tokens .t").count() < 2000
    assert "word8190" in str(page.locator(".tokens").text_content()), "it can be found before it is drawn"
    page.locator(".tokens > div").last.scroll_into_view_if_needed()
    page.wait_for_selector(".tokens > div:last-child .t.rare.s6")
    show(page, "run/new")
    show(page, "run/long/step/1/rollout/1-0-1?token=5002")
    assert page.evaluate("document.activeElement.textContent") == " word5001"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == " word5002"
    assert "token 5003 of 8192" in page.locator(".numbers").inner_text()


def test_a_long_table_has_pages(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_ROWS", 5)
    show(page, "run/new/step/all")
    assert rows(page) == ["1-0-0", "1-0-1", "1-0-2", "1-0-3", "1-1-0"]
    page.get_by_label("sort by").select_option("-against")
    page.wait_for_selector("a[data-row]:text-is('3-0-3')")
    page.get_by_role("button", name="page 2 →").click()
    page.wait_for_selector("#pages:has-text('6 to 10')")
    assert rows(page)[0] == "3-1-3"
    page.get_by_label("text").fill("GOT 2")
    page.keyboard.press("Enter")
    page.wait_for_selector("#shown:has-text('5 rollouts with this text')")
    assert rows(page)[0] == "1-0-2"


def test_a_page_in_a_file_shows_the_same(page: Any, site: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    export(site / "new", file, [1, 2])
    page.goto(file.as_uri())
    page.wait_for_selector("h1:has-text('new')")
    assert rows(page) == ["1", "2"], "steps that are not in the file have no link"
    page.get_by_role("link", name="2", exact=True).click()
    page.get_by_label("text").fill("OnError")
    page.keyboard.press("Enter")
    counted(page, "a[data-row]", 1)
    page.locator("a[data-row]").click()
    page.wait_for_selector(".tokens .t")
    assert HOSTILE[:20] in page.locator(".tokens").inner_text()
    page.wait_for_selector("mark:has-text('Correct solution:')")
    assert page.evaluate("window.hacked") is None
    page.keyboard.press("g")
    page.wait_for_selector("h1:has-text('Group 2-1')")
