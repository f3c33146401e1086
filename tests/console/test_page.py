"""The page in a real Chromium, in front of a real `plaudit up`."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright

from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.rollout import Change, promote
from plaudit_models.spec import ModelSpec, TextModality
from support import builders
from support.deployment import PLAUDIT, Service, deployed
from support.programs import chromium

pytestmark = pytest.mark.browser

DESKTOP: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
LIVE = re.compile(r"live in version \d+")

Open = Callable[..., Page]

expect.set_options(timeout=30_000)  # for machines that are busy; nothing waits longer than it must


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Browser whose microphone hears a beep, and is granted to every page."""
    program = chromium()
    arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program.path, env=dict(program.environment) or None, args=arguments
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deployed(tmp_path_factory.mktemp("deployment"))


@pytest.fixture(scope="module")
def page_url(config: Path) -> Iterator[str]:
    up = Service([*PLAUDIT, "up", "--config", str(config), "--console-port", "0", "--json"])
    try:
        yield up.event(event="ready", service="console")["page"]
    finally:
        up.kill()


@pytest.fixture
def opened(browser: Browser, page_url: str) -> Iterator[Open]:
    """Opens the page. Fails the test if the page writes to the browser's console or calls another host."""
    problems: list[str] = []
    contexts = []

    def open_page(viewport: ViewportSize = DESKTOP) -> Page:
        context = browser.new_context(viewport=viewport)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: _from_elsewhere(request.url, page_url, problems))
        page.goto(page_url)
        expect(page.get_by_role("button", name="Ask")).to_be_enabled()
        expect(page.locator("#versions > li").first).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def _from_elsewhere(url: str, own: str, problems: list[str]) -> None:
    if not url.startswith((own, "blob:", "data:")):
        problems.append(f"asked {url}")


def _given(page: Page, modality: str) -> None:
    expect(page.locator(f"#part-{modality} legend small")).to_be_empty()


def test_content_of_every_kind_is_answered_explained_and_learned_from(opened: Open) -> None:
    page = opened()
    box = page.locator("#part-image canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 130, steps=5)
    page.mouse.up()
    _given(page, "image")
    page.locator("#part-audio").get_by_role("button", name="Record").click()
    _given(page, "audio")  # it stops by itself
    page.get_by_role("textbox", name="question").fill("which animal is it?")
    page.get_by_role("button", name="Zeros").click()

    with page.expect_request("**/predict") as sent:
        page.get_by_role("button", name="Ask").click()
    asked: Any = sent.value.post_data_json
    content = asked["content"]
    assert {name: list(part) for name, part in content.items()} == {
        "image": ["image"],
        "audio": ["audio"],
        "question": ["text"],
        "sensor": ["tensor", "dtype"],
    }
    answer = page.locator("#answer")
    expect(answer.locator(".said")).to_have_text(re.compile("^(cat|dog|bird|fish)$"))
    expect(answer).to_contain_text("picked with probability")
    expect(answer.locator(".bars").nth(1).locator("dt")).to_have_count(4)  # what each modality contributed

    page.get_by_role("button", name="Good").click()
    expect(page.locator("#receipts li")).to_have_class("live")
    expect(page.locator("#receipts li")).to_contain_text(LIVE)
    expect(page.get_by_role("button", name="Good")).to_be_disabled()


def test_what_was_learned_shows_in_the_loop(opened: Open) -> None:
    page = opened()
    page.get_by_role("textbox", name="question").fill("which?")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Bad").click()
    expect(page.locator("#receipts li")).to_contain_text(LIVE)
    version = page.locator("#receipts li").inner_text().split()[-1]

    live = page.locator("#versions > li", has=page.locator(".tag.live"))
    expect(live).to_contain_text(re.compile(r"Version \d+"))
    expect(page.locator("#curve canvas")).to_be_visible()
    expect(page.locator("#curve")).to_have_attribute("aria-label", re.compile("Now version 1 and its refreshes: .* %"))
    expect(page.locator("#facts")).to_contain_text("In the queue")
    expect(page.locator("#learner")).to_contain_text("Running.")
    page.get_by_label("with every head refresh").check()
    name = page.locator(".name", has_text=re.compile(f"^Version {version}$"))
    expect(page.locator("#versions > li", has=name)).to_contain_text("head refresh")


def test_a_correction_and_an_uploaded_image(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(builders.png())
    page = opened()
    page.locator("#part-image input[type=file]").set_input_files(tmp_path / "a.png")
    _given(page, "image")
    page.get_by_role("button", name="Ask").click()
    page.get_by_label("The right answer").select_option("fish")
    page.get_by_role("button", name="Correct it").click()
    expect(page.locator("#receipts li")).to_contain_text("“fish” would be right")
    expect(page.locator("#receipts li")).to_contain_text(LIVE)


def test_the_keyboard_does_it_all(opened: Open) -> None:
    page = opened()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the loop")).to_be_focused()
    page.get_by_role("textbox", name="question").focus()
    page.keyboard.type("which?")
    page.keyboard.press("Enter")
    good = page.get_by_role("button", name="Good")
    expect(good).to_be_visible()
    _tab_to(page, good)
    page.keyboard.press("Space")
    expect(page.locator("#receipts li")).to_contain_text(LIVE)
    first = page.locator("#versions summary").last
    _tab_to(page, first)
    page.keyboard.press("Enter")
    expect(page.locator("#versions details").last).to_have_attribute("open", "")
    expect(page.locator("#versions details").last).to_contain_text("made by a test")


def _tab_to(page: Page, target: Locator) -> None:
    for _ in range(80):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab does not lead to {target}")


def test_a_phone_shows_it_without_scrolling_sideways(opened: Open) -> None:
    page = opened(PHONE)
    page.get_by_role("textbox", name="question").fill("which?")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer .said")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def _is_there(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=30).close()
    except urllib.error.HTTPError as error:
        error.close()
        return False
    return True


def test_another_model_is_there_to_choose_with_inputs_of_its_own(
    opened: Open, page_url: str, config: Path, tmp_path: Path
) -> None:
    spec = ModelSpec("zoo", {"name": TextModality()}, ("bear", "lion"), embedding_size=8)
    registry = model_registry(load_settings(config), spec.name)
    builders.tiny_bundle(tmp_path / "zoo", spec=spec)
    registry.publish(tmp_path / "zoo")
    registry.set_rollout(promote(registry.rollout(), 1, Change("ada", 1.0, "opened")))
    while not _is_there(f"{page_url}api/models/zoo"):  # the server looks for new models in its own time
        pass
    page = opened()
    page.get_by_label("Model").select_option("zoo")
    expect(page.locator("#serving")).to_have_text("zoo: version 1 serves")
    expect(page.locator("#parts fieldset")).to_have_count(1)
    expect(page.locator("#learner")).to_contain_text("No learner of this model has run here.")
    expect(page.locator("#changes")).to_contain_text("opened (ada)")
    page.get_by_role("textbox", name="name").fill("who is it?")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer .said")).to_have_text(re.compile("^(bear|lion)$"))


def test_what_cannot_be_sent_is_said_and_nothing_is_lost(browser: Browser, page_url: str) -> None:
    page = browser.new_page()
    page.goto(page_url)
    ask = page.get_by_role("button", name="Ask")
    expect(ask).to_be_enabled()
    ask.click()
    expect(page.locator("#answer .problem")).to_contain_text("content")
    page.get_by_role("textbox", name="sensor, as JSON").fill("[1, 2")
    ask.click()
    expect(page.locator("#answer .problem")).to_contain_text("sensor: this is not JSON")
    page.get_by_role("textbox", name="sensor, as JSON").fill("[1, 2, 3]")
    ask.click()
    expect(page.locator("#answer .problem")).to_contain_text('content["sensor"]')
    page.close()


def test_while_the_console_is_away_the_page_says_so_and_comes_back(browser: Browser, page_url: str) -> None:
    page = browser.new_page()
    page.goto(page_url)
    expect(page.locator("#trouble")).to_be_hidden()
    page.route("**/loop", lambda route: route.abort())
    expect(page.get_by_role("alert").first).to_contain_text("the console does not answer")
    page.unroute("**/loop")
    expect(page.locator("#trouble")).to_be_hidden()
    page.close()
