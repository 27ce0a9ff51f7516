"""The page in a browser, on a small index: by words, by click, by drop, by keyboard, on a phone."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jobs.search_places import PlacesConfig
from jobs.serve.running import open_catalogue

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
TOKEN = "a-token-of-24-characters"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def url(serving, replica, searchable) -> str:
    """Of a server with a real index and models."""
    opened = open_catalogue(str(searchable), PlacesConfig())
    limits = {"search_timeout_s": 300.0, "request_timeout_s": 60.0}
    return serving(answer=replica, catalogue=opened.get, **limits).url


@pytest.fixture
def visit(browser):
    """Opens a page: `visit(url, **of its context)`; at the end nothing may have gone wrong."""
    pages = []

    def visit(url: str, **context: object) -> object:
        page = browser.new_context(viewport={"width": 1200, "height": 900}, **context).new_page()
        page.set_default_timeout(300_000)
        seen = SimpleNamespace(page=page, requests=[], complaints=[])
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("console", lambda message: seen.complaints.append(message.text))
        pages.append((url, seen))
        page.goto(url)
        return page

    yield visit
    for url, seen in pages:
        assert [one for one in seen.requests if not one.startswith((url, "blob:"))] == []
        wrong = [one for one in seen.complaints if "the server responded with" not in one]
        assert wrong == []
        seen.page.context.close()


def found(page) -> list[str]:
    """The uids of the pictures shown, in order, once the first is drawn."""
    page.wait_for_selector("body:not(.busy) #found img")
    images = page.locator("#found img")
    images.first.evaluate("image => image.decode()")  # waits, and fails where it is no picture
    return [one.get_attribute("src").split("/")[3] for one in images.all()]


def said(page, words: str) -> None:
    """Waits until the page says something."""
    page.locator("#status", has_text=words).wait_for()


def by_words(page, text: str) -> list[str]:
    page.fill("#text", text)
    page.press("#text", "Enter")
    said(page, " pictures, in ")
    return found(page)


def test_words_click_and_drop_search(visit, url):
    page = visit(url)
    said(page, "Some of the pictures")
    assert len(found(page)) == 24
    words = by_words(page, "picture number 3")
    assert len(words) == 24
    assert page.locator("#found .score").count() == 24
    assert page.url.endswith("/?text=picture+number+3")

    page.locator(".picture").nth(2).click()
    page.wait_for_selector("#words:not([hidden])")
    like = found(page)
    assert words[2] not in like  # itself is not found
    assert page.locator("#captions button").count() == 5
    assert page.input_value("#text") == ""
    both = by_words(page, "picture of 5")
    assert both != like
    assert page.url.endswith(f"like={words[2]}")
    page.go_back()
    page.go_back()
    said(page, " pictures, in ")
    assert found(page) == words

    image = page.request.get(f"{url}/v1/pairs/{words[5]}/picture").body()
    drop(page, image)
    page.wait_for_selector("#shown:not([hidden])")
    page.wait_for_selector("#words:not([hidden])")
    assert found(page)[0] == words[5]  # as a file it is none of the index, and so finds itself
    page.locator("#captions button").first.click()
    page.wait_for_selector("#shown", state="hidden")
    assert page.input_value("#text")
    said(page, " pictures, in ")
    assert len(found(page)) == 24


def test_what_is_written_before_the_server_answers_stays(visit, url):
    page = visit(url)
    said(page, "Some of the pictures")
    held = []
    page.route("**/v1/index", lambda route: held.append(route))  # a builtin takes no attribute

    def reload_and_write(*, enter: bool) -> None:
        held.clear()
        page.goto(url)
        page.fill("#text", "picture number 3")
        if enter:
            page.press("#text", "Enter")
        while not held:
            page.wait_for_timeout(10)
        assert page.locator("#status").text_content() == ""
        held[0].continue_()

    reload_and_write(enter=False)
    said(page, "Some of the pictures")
    assert page.input_value("#text") == "picture number 3"
    reload_and_write(enter=True)
    said(page, " pictures, in ")
    assert len(found(page)) == 24


def drop(page, image: bytes) -> None:
    """As if the file were dragged from a folder onto the page."""
    file = page.evaluate_handle(
        """data => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const dropped = new DataTransfer();
            dropped.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            return dropped;
        }""",
        base64.b64encode(image).decode(),
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": file})
    assert page.is_visible("#drop")
    page.dispatch_event("body", "drop", {"dataTransfer": file})
    assert not page.is_visible("#drop")


def test_what_is_no_picture_and_addresses_are_told_of_and_not_fetched(visit, url):
    page = visit(url)
    found(page)
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"words"})
    said(page, "no picture that can be read")
    bad = {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"}
    with page.expect_response("**/v1/search*") as answer:
        page.set_input_files("#file", bad)
    assert answer.value.status == 422
    said(page, "cannot be used (failed:not_a_picture)")
    address = page.evaluate_handle(
        """() => {
            const dropped = new DataTransfer();
            dropped.setData("text/uri-list", "http://127.0.0.1:9/evil.png");
            return dropped;
        }"""
    )
    page.dispatch_event("body", "drop", {"dataTransfer": address})
    said(page, "nothing is fetched from other addresses")
    assert not page.is_visible("#shown")
    assert len(by_words(page, "picture")) == 24


def test_a_keyboard_is_enough(visit, url):
    page = visit(url)
    shown = found(page)
    page.keyboard.press("/")
    page.keyboard.type("picture of 7")
    page.keyboard.press("Enter")
    said(page, " pictures, in ")
    words = found(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert focused(page) == words[1]
    page.keyboard.press("ArrowDown")
    columns = len(
        page.locator("#found").evaluate("e => getComputedStyle(e).gridTemplateColumns").split()
    )
    assert focused(page) == words[1 + columns]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_selector("#shown:not([hidden])")
    like = found(page)
    assert words[0] not in like
    assert like != shown


def focused(page) -> str:
    return page.evaluate("document.activeElement.querySelector('img').src").split("/")[5]


def test_reranking_is_offered_and_shown(visit, url):
    page = visit(url)
    found(page)
    page.select_option("#k", "12")
    page.check("#rerank")
    by_words(page, "picture number 3")
    matches = [one.inner_text() for one in page.locator("#found .score span:nth-child(2)").all()]
    values = [float(text.split()[1]) for text in matches]
    assert len(values) == 12
    assert values == sorted(values, reverse=True)


def test_a_token_is_asked_for_once(visit, serving, replica, searchable):
    opened = open_catalogue(str(searchable), PlacesConfig())
    limits = {"search_timeout_s": 300.0, "request_timeout_s": 60.0}
    url = serving(answer=replica, catalogue=opened.get, token=TOKEN, **limits).url
    page = visit(url)
    page.fill("#token", "guess")
    page.press("#token", "Enter")
    page.locator("#wrong", has_text="That is not it").wait_for()
    page.fill("#token", TOKEN)
    page.press("#token", "Enter")
    assert len(found(page)) == 24
    page.reload()
    assert len(found(page)) == 24
    assert not page.locator("#signing").is_visible()


@pytest.mark.parametrize(("theme", "width"), [("light", 1200), ("dark", 1200), ("dark", 390)])
def test_it_is_drawn_in_light_and_dark_and_fits_a_phone(visit, url, tmp_path: Path, theme, width):
    page = visit(url, color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 844})
    by_words(page, "picture number 3")
    page.locator(".picture").first.click()
    page.wait_for_selector("#words:not([hidden])")
    found(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert pixels.std() > 10  # something is drawn
    edge = np.median(pixels[:, -4:])  # beside the pictures
    assert (edge < 60) == (theme == "dark")
    buttons = page.locator("#box button[type=submit], #choose").all()
    assert all(one.bounding_box()["height"] >= 40 for one in buttons)  # for fingers
