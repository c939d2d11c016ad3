"""The playground in a real Chromium: what a person does there, and that everyone can.

Screenshots are left in build/screenshots. Write docs/pictures/playground.png anew, from a service
with a model worth showing, with: python -m tests.integration.test_playground URL
"""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.integration.service import Service, environment

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
OPTIONS = [
    "--no-sandbox",  # tests run as root in containers
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
WEIGHT_BYTES = 150_000
PATIENCE_MS = 60_000

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt install chromium)")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, service: Service) -> Iterator[Open]:
    """Opens the playground; anything the page logs as an error fails the test."""
    contexts, faults = [], []

    def open_page(width: int = 1280, scheme: str = "light", **options: Any) -> Page:
        viewport = {"width": width, "height": 900}
        context = browser.new_context(color_scheme=scheme, viewport=viewport, **options)  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(service.url)
        expect(page.locator("#sampler option")).not_to_have_count(0)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def draw(page: Page, prompt: str = "a red apple", tiles: int = 2) -> None:
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    done = page.locator("li.tile[data-status=succeeded] img:not([alt=preview], [hidden])")
    expect(done).to_have_count(tiles)


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def set_option(page: Page, name: str, value: int) -> None:
    """Move a slider as a script can: its value, and the event that tells the page."""
    page.locator(f"#{name}").evaluate(
        "(field, value) => { field.value = value;"
        " field.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


def test_generate(open_page: Open) -> None:
    page = open_page()
    draw(page)
    picture = page.locator("li.tile img").first
    expect(picture).to_have_js_property("naturalWidth", 64)  # the largest size
    with page.expect_download() as download:
        page.locator("li.tile a[data-do=download]").first.click()
    assert download.value.suggested_filename.startswith("a-red-apple-")
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    page.reload()
    expect(page.locator("li.tile[data-status=succeeded]")).to_have_count(2)


def test_again_keeps_the_seed_and_vary_does_not(open_page: Open) -> None:
    page = open_page()
    draw(page)
    seed = page.locator("li.tile .seed").nth(1).inner_text().removeprefix("seed ")
    page.locator("li.tile").nth(1).locator("[data-do=again]").click()
    expect(page.locator("#seed")).to_have_value(seed)
    expect(page.locator("#prompt")).to_be_focused()
    draw(page, tiles=3)
    expect(page.locator("li.tile .seed").first).to_have_text(f"seed {seed}")
    page.locator("li.tile").first.locator("[data-do=vary]").click()
    expect(page.locator("li.tile[data-status=succeeded]")).to_have_count(4)
    assert page.locator("li.tile .seed").first.inner_text() != f"seed {seed}"


def test_again_is_with_the_model_it_was(open_page: Open) -> None:
    def another(route: Route) -> None:
        found = route.fetch().json()
        [card] = found["data"]
        other = {**card, "id": "other", "default_steps": 3, "is_default": True}
        found["data"] = [{**card, "is_default": False}, other]
        route.fulfill(json=found)

    page = open_page()
    page.route("**/v1/models", another)
    page.reload()
    expect(page.locator("#model")).to_have_value("other")
    page.locator("#model").evaluate("field => field.closest('details').open = true")
    page.select_option("#model", "tiny")
    draw(page)
    page.reload()
    expect(page.locator("#model")).to_have_value("other")
    page.locator("li.tile").first.locator("[data-do=again]").click()
    expect(page.locator("#model")).to_have_value("tiny")
    draw(page, tiles=3)


def test_pictures_appear_while_they_are_drawn(open_page: Open) -> None:
    page = open_page()
    set_option(page, "steps", 200)
    page.fill("#prompt", "a red apple")
    page.press("#prompt", "Enter")
    preview = page.locator("li.tile[data-status=running] img[alt=preview]").first
    expect(preview).to_have_attribute("src", re.compile("^data:image/png"))
    shoot(page, "preview")
    expect(page.locator("li.tile[data-status=succeeded] img:not([alt=preview])")).to_have_count(2)


def test_where_a_job_stands_in_line(open_page: Open, service: Service) -> None:
    page = open_page()
    ahead = [service.submit("endless", steps=1000, n=8) for _ in range(4)]
    page.fill("#prompt", "a red apple")
    page.press("#prompt", "Enter")
    expect(page.locator("li.tile .state").first).to_contain_text(re.compile("ahead|next in line"))
    shoot(page, "queued")
    for job in ahead:
        service.http.delete(f"/v1/jobs/{job['id']}").raise_for_status()
    expect(page.locator("li.tile[data-status=succeeded]")).to_have_count(2)


def test_cancel(open_page: Open) -> None:
    page = open_page()
    set_option(page, "steps", 200)
    set_option(page, "n", 8)
    page.fill("#prompt", "a long one")
    page.press("#prompt", "Enter")
    expect(page.locator("li.tile")).to_have_count(8)
    expect(page.locator("#gallery-note")).to_have_text("1 job under way")
    page.locator("[data-do=cancel]:visible").first.click()
    expect(page.locator("li.tile[data-status=canceled] .state")).to_have_text("Canceled")
    expect(page.locator("li.tile")).to_have_count(1)  # one tile says it for all
    shoot(page, "canceled")


def test_a_wrong_field_is_named_where_it_is(open_page: Open) -> None:
    page = open_page()
    page.press("#prompt", "Enter")
    expect(page.locator("#prompt-error")).to_have_text("Say what to draw.")
    page.fill("#prompt", "a fox")
    page.locator(".options summary").click()
    page.fill("#seed", "seven")
    page.press("#prompt", "Enter")
    expect(page.locator("#notice")).to_contain_text("Something in the request is not right. Seed:")
    expect(page.locator("#seed")).to_be_focused()
    shoot(page, "wrong-field")
    page.fill("#seed", "-1")
    page.press("#prompt", "Enter")
    expect(page.locator("#notice")).to_contain_text("greater than or equal to 0, not -1")
    page.fill("#seed", "")
    draw(page, "a fox")
    expect(page.locator("#notice")).to_be_hidden()


def refuse(status: int, slug: str) -> Callable[[Route], None]:
    """Play a service that refuses submissions."""
    problem = {"type": f"/problems/{slug}", "title": slug, "status": status, "detail": "so it is"}

    def answer(route: Route) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        headers = {"Content-Type": "application/problem+json", "Retry-After": "2"}
        route.fulfill(status=status, headers=headers, body=json.dumps(problem | {"instance": "r1"}))

    return answer


def test_refusals_say_what_and_when(open_page: Open) -> None:
    page = open_page()
    for status, slug, words in (
        (429, "quota-exceeded", "as much as your key may ask for"),
        (503, "queue-full", "The queue is full."),
        (500, "internal-error", "Request r1."),
        (418, "of-the-future", "so it is"),
    ):
        page.route("**/v1/jobs", refuse(status, slug))
        page.fill("#prompt", "a fox")
        page.press("#prompt", "Enter")
        expect(page.locator("#notice")).to_contain_text(words)
        expect(page.locator("#notice")).to_contain_text("Try again now.")
        shoot(page, slug)
        page.unroute("**/v1/jobs")
    page.route("**/v1/jobs", lambda route: route.abort())
    page.press("#prompt", "Enter")
    expect(page.locator("#notice")).to_contain_text("The server does not answer.")


def test_a_failed_job_says_why(open_page: Open, service: Service) -> None:
    page = open_page()
    failed = {"status": "failed", "error": {"type": "/problems/worker-lost", "status": 500}}

    def fail(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | failed)

    page.route("**/v1/jobs/*/events*", lambda route: route.abort())
    page.route("**/v1/jobs/*", fail)
    page.fill("#prompt", "a fox")
    page.press("#prompt", "Enter")
    tile = page.locator("li.tile[data-status=failed] .state")
    expect(tile).to_contain_text("The machine that drew it failed.")
    shoot(page, "failed")


def test_a_key_is_asked_for_only_when_it_is_needed(
    browser: Browser, tmp_path: Path, tiny_bundle: Path
) -> None:
    with Service(tmp_path / "data", tiny_bundle, api_keys="ann:secret") as closed:
        page = browser.new_page()
        page.goto(closed.url)
        expect(page.locator("#api-key")).to_be_focused()
        shoot(page, "key")
        page.fill("#api-key", "wrong")
        page.press("#api-key", "Enter")
        expect(page.locator("#notice")).to_contain_text("An API key is needed.")
        page.fill("#api-key", "secret")
        page.press("#api-key", "Tab")
        expect(page.locator("#sampler option")).not_to_have_count(0)
        draw(page)
        page.close()


def test_copied_code_draws_the_same(open_page: Open, service: Service, tmp_path: Path) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    draw(page, 'it\'s a "fox" & $HOME')
    page.locator("li.tile .board").first.click()
    code = {}
    for name in ("curl", "python"):
        page.locator(f"#details [data-do={name}]").click()
        expect(page.locator("#details [role=status]")).to_contain_text("Copied")
        code[name] = page.evaluate("() => navigator.clipboard.readText()")
    job = json.loads(subprocess.check_output(["sh", "-c", code["curl"]], timeout=90))
    assert job["request"]["prompt"] == 'it\'s a "fox" & $HOME'
    shown = page.locator("li.tile img").first.get_attribute("src") or ""
    drawn = service.http.get(shown).content
    assert service.pictures(job)[0] == drawn
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run(
        [sys.executable, "-c", code["python"]], cwd=tmp_path, check=True, timeout=90,
        env=environment({}) | {"PYTHONPATH": root},
    )  # fmt: skip
    [first, second] = sorted(tmp_path.glob("picture-*.png"))
    assert drawn in (first.read_bytes(), second.read_bytes())


def test_without_a_mouse(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a fox")
    page.keyboard.press("Enter")
    expect(page.locator("li.tile[data-status=succeeded]")).to_have_count(2)
    picture = page.locator("li.tile .board").first
    for _ in range(30):
        page.keyboard.press("Tab")
        if picture.evaluate("button => button === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#details")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    expect(picture).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_everyone_can_use_it(open_page: Open, scheme: str, width: int) -> None:
    page = open_page(width, scheme, reduced_motion="reduce")
    name = f"{scheme}-{width}"
    accessible(page, f"{name}-empty")
    draw(page)
    page.locator(".options summary").click()
    accessible(page, f"{name}-pictures")
    page.locator("li.tile .board").first.click()
    accessible(page, f"{name}-details")
    page.keyboard.press("Escape")
    page.click("#open-about")
    expect(page.locator("#about")).to_contain_text("random weights for tests")
    accessible(page, f"{name}-about")


def accessible(page: Page, name: str) -> None:
    """No finding of axe-core, and nothing wider than the screen."""
    shoot(page, name)
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found] == []
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0


def test_light_still_and_from_here_only(browser: Browser, service: Service) -> None:
    page = browser.new_page()
    answers: list[Any] = []
    page.on("response", lambda answer: answers.append(answer))
    page.add_init_script(
        "window.shifts = []; new PerformanceObserver(list => window.shifts.push("
        "...list.getEntries().map(entry => entry.value))"
        ").observe({type: 'layout-shift', buffered: true});"
    )
    page.goto(service.url)
    expect(page.locator("#sampler option")).not_to_have_count(0)
    assert all(answer.url.startswith(service.url) for answer in answers)
    assert sum(len(answer.body()) for answer in answers) < WEIGHT_BYTES
    assert sum(page.evaluate("() => window.shifts")) < 0.01
    page.close()


def portrait(url: str) -> None:
    """Write the picture of the README: some pictures done, some on their way."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(url)
        expect(page.locator("#sampler option")).not_to_have_count(0)
        for tiles, prompt in ((2, "a cat inside an avocado"), (4, "a penguin riding a bicycle")):
            draw(page, prompt, tiles)
        for prompt in ("a blue star", "a green leaf"):
            page.fill("#prompt", prompt)
            page.press("#prompt", "Enter")
        expect(page.locator("li.tile img[alt=preview]")).to_have_count(4)
        page.wait_for_timeout(2000)
        taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        browser.close()
    smaller = taken.resize((900, round(taken.height * 900 / taken.width)), Image.Resampling.LANCZOS)
    palette = smaller.quantize(160, dither=Image.Dither.NONE)
    pictures = Path(__file__).resolve().parents[2] / "docs" / "pictures"
    palette.save(pictures / "playground.png", optimize=True)


if __name__ == "__main__":
    portrait(sys.argv[1])
