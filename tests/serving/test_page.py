"""The page in a browser: a picture is uploaded, a question asked, its answer seen to be denoised, and compared."""

import json
import re
import shutil

import pytest
from helpers import QUESTION
from serving_helpers import generated, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
CHROMIUM = shutil.which("chromium")
PHONE = {"width": 390, "height": 844}

# Notes down what the draft shows, as often as it changes.
WATCH = """() => {
  window.drafts = [];
  new MutationObserver(() => {
    const draft = [...document.querySelectorAll(".draft span")];
    if (draft.length) window.drafts.push(draft.map((token) => token.className === "masked" ? null : token.textContent));
  }).observe(document.getElementById("chat"), { childList: true, subtree: true });
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a page; whatever it loads must come from its server."""
    contexts, elsewhere = [], []

    def open_page(url, **context):
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("request", lambda request: request.url.startswith((url, "data:")) or elsewhere.append(request.url))
        page.on("pageerror", lambda error: elsewhere.append(str(error)))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not elsewhere


@pytest.mark.slow
def test_a_picture_is_asked_about_and_the_answer_is_seen_to_be_denoised(open_page, model, processor, pictures):
    _, text = generated(model, processor, QUESTION, pictures[0], max_new_tokens=24)
    with serving(model, processor, page=True) as server:
        page = open_page(server.url)
        page.evaluate(WATCH)
        assert page.locator("h1").text_content() == "tiny"
        page.set_input_files("#file", pictures[0])
        page.locator("#pictures img").wait_for()
        page.fill("#question", QUESTION)
        page.click("#send")
        page.get_by_text("tokens per forward").wait_for()
        assert page.locator("article.assistant .text").first.text_content() == text
        drafts = page.evaluate("window.drafts")
        assert len({json.dumps(draft) for draft in drafts}) > 6
        assert any(None in draft for draft in drafts)
        assert page.locator(".draft span").count() == 0  # no draft is left
        page.click("text=Compare with one token a forward")
        page.get_by_text(re.compile("One token a forward: 24 tokens, 24 forwards")).wait_for()
        page.fill("#question", "and this?")  # the second turn sends the first one
        page.press("#question", "Enter")
        page.locator("article.assistant").nth(2).get_by_text("tokens per forward").wait_for()
        page.click("summary")
        page.fill("[name=max_tokens]", "5000")
        page.fill("#question", "too long?")
        page.press("#question", "Enter")
        assert "do not fit" in page.locator(".error").text_content()
        server.wait_until_idle()


@pytest.mark.slow
def test_stop_frees_the_row_and_the_key_is_asked_for(open_page, model, processor):
    with serving(model, processor, page=True, api_key="sesame") as server:
        page = open_page(server.url)
        page.click("summary")
        page.fill("#key", "sesame")
        page.press("#key", "Tab")
        page.get_by_role("heading", name="tiny").wait_for()
        page.fill("[name=max_tokens]", "200")
        page.fill("#question", "hi")
        page.click("#send")
        page.locator(".draft span").first.wait_for()
        page.click("text=Stop")
        page.get_by_text("stopped").wait_for()
        server.wait_until_idle()
        assert server.metric("answers_ended_total", reason="abort") == 1


@pytest.mark.slow
def test_it_fits_a_phone_and_follows_the_dark_mode(open_page, model, processor):
    with serving(model, processor, page=True) as server:
        page = open_page(server.url, viewport=PHONE, color_scheme="dark", is_mobile=True, has_touch=True)
        page.fill("#question", "hi " * 60)
        page.tap("#send")
        page.get_by_text("tokens per forward").wait_for()
        page.tap("summary")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        red = page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").partition(",")[0]
        assert int(red) < 64


def test_there_is_no_page_unless_it_is_asked_for(server):
    assert server.client.get("/").status_code == 404
