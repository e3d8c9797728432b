"""The page of `rcdrv report` in a real browser: light, dark, narrow, printed, and silent."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from rcdrv.report.html.page import page

from .browser import Browser, browser
from .test_html import DOCUMENTS, source

BACKGROUND = "getComputedStyle(document.body).backgroundColor"
NOISE = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A page of every kind of result, with two runs compared."""
    folder = tmp_path_factory.mktemp("browser")
    sources = [source(kind, document) for kind, document in DOCUMENTS.items()]
    sources.append(source("test", DOCUMENTS["test"], "again.json"))
    file = folder / "page.html"
    file.write_text(page(sources, datetime(2026, 1, 2)), encoding="utf-8")
    with browser(folder) as opened:
        opened.open(file)
        yield opened


def _media(shown: Browser, scheme: str, media: str = "screen") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    shown("Emulation.setEmulatedMedia", media=media, features=features)


def test_light_and_dark_differ(shown: Browser) -> None:
    seen = []
    for scheme in ("light", "dark"):
        _media(shown, scheme)
        seen.append(shown.value(BACKGROUND))
        picture = base64.b64decode(shown("Page.captureScreenshot")["data"])
        assert picture.startswith(b"\x89PNG")
    assert seen[0] != seen[1]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_width_needs_sideways_scrolling(shown: Browser, width: int) -> None:
    shown(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    assert shown.value("innerWidth") == width
    room = shown.value("document.documentElement.clientWidth")  # without the scroll bar
    assert shown.value("document.documentElement.scrollWidth") <= room
    shown("Emulation.clearDeviceMetricsOverride")


def test_print_is_light(shown: Browser) -> None:
    _media(shown, "light", "print")
    light = shown.value(BACKGROUND)
    _media(shown, "dark", "print")
    assert shown.value(BACKGROUND) == light
    printed = base64.b64decode(shown("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF")
    _media(shown, "light")


def test_it_says_and_asks_nothing(shown: Browser) -> None:
    """No console message, no exception, and no request but for the page itself."""
    assert not [one for one in shown.events if one["method"] in NOISE]
    (only,) = _asked(shown)
    assert only.startswith("file://")
    assert only.endswith("/page.html")


def _asked(shown: Browser) -> list[str]:
    urls = [
        one["params"]["request"]["url"]
        for one in shown.events
        if one["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith("data:")]


def test_a_page_that_asks_and_complains_is_seen(tmp_path: Path) -> None:
    """What the test before this one would not pass."""
    file = tmp_path / "bad.html"
    file.write_text("<img src='missing.png'><script>console.error('x'); throw 1</script>")
    with browser(tmp_path) as bad:
        bad.open(file)
        assert {one["method"] for one in bad.events} >= {*NOISE}
        assert [url.rpartition("/")[2] for url in _asked(bad)] == ["bad.html", "missing.png"]
