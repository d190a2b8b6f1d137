import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one of each. Not to be changed but by adding."""
    from site_runs import make_site

    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def url(site: Path) -> str:
    """The address of its pages."""
    from selfdistill.view.site.answers import Answers
    from selfdistill.view.site.app import serve
    from selfdistill.view.site.library import Library

    ready = Queue[str]()
    threading.Thread(target=serve, args=(Answers(Library([site])), 0, ready.put), daemon=True).start()
    return ready.get(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def shared_page(browser: Any, url: str) -> Any:
    """One page of one browser, at the table of runs."""
    from browser_parts import PATIENCE_MS

    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    return page


@pytest.fixture
def page(shared_page: Any) -> Iterator[Any]:
    """The page, wide and light, on which no script may fail, and which may load nothing from elsewhere."""
    wrong = list[str]()
    events = {
        "pageerror": lambda error: wrong.append(str(error)),
        "console": lambda message: wrong.append(message.text) if message.type == "error" else None,
        "request": lambda request: (
            None if request.url.startswith(("http://127.0.0.1", "file:", "data:")) else wrong.append(request.url)
        ),
    }
    for name, note in events.items():
        shared_page.on(name, note)
    shared_page.set_viewport_size({"width": 1280, "height": 900})
    shared_page.emulate_media(color_scheme="light")
    shared_page.mouse.move(0, 0)
    yield shared_page
    for name, note in events.items():
        shared_page.remove_listener(name, note)
    assert not wrong
