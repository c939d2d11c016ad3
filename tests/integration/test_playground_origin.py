"""The playground, from a picture on: a file, a picture drawn there, and back to noise."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from tests.integration.service import Service
from tests.integration.test_playground import (
    Open,
    browser,  # noqa: F401 - a fixture
    draw,
    open_page,  # noqa: F401 - a fixture
    set_option,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_start_from_a_file_and_from_what_was_drawn(
    open_page: Open,  # noqa: F811 - a fixture
    service: Service,
    tmp_path: Path,
) -> None:
    file = tmp_path / "square.png"
    Image.new("RGB", (16, 16), (200, 40, 40)).save(file)
    page = open_page()
    page.locator(".options summary").click()
    expect(page.locator("#strength")).to_be_hidden()
    page.get_by_label("Start from a picture").set_input_files(file)
    expect(page.locator("#origin-name")).to_have_text("Starts from square.png.")
    set_option(page, "strength", 0.5)  # type: ignore[arg-type]
    assert Axe().run(page).violations_count == 0
    with page.expect_request("**/v1/jobs") as sent:
        draw(page)
    body = json.loads(sent.value.post_data or "")
    assert (body["strength"], body["init_image"][:22]) == (0.5, "data:image/png;base64,")
    page.locator("li.tile [data-do=vary]").first.click()
    done = page.locator("li.tile[data-status=succeeded] img:not([alt=preview], [hidden])")
    expect(done).to_have_count(4)

    page.locator("li.tile button.board").first.click()
    page.get_by_role("button", name="Start from it").click()
    expect(page.locator("#origin-name")).to_contain_text("a red apple")
    draw(page, "a green pear", tiles=6)
    page.get_by_role("button", name="Start from noise").click()
    expect(page.locator("#strength")).to_be_hidden()
    draw(page, "a fox", tiles=8)
    jobs = service.http.get("/v1/jobs?limit=4").json()["data"]
    starts = [job["request"]["init_image"] for job in jobs]
    assert starts[0] is None
    assert starts[2] == starts[3]
    drawn = {image["sha256"] for job in jobs[2:] for image in job["images"]}
    assert starts[1] in drawn


def test_what_is_no_picture_is_said_at_its_field(
    open_page: Open,  # noqa: F811 - a fixture
    tmp_path: Path,
) -> None:
    file = tmp_path / "wrong.png"
    file.write_bytes(BytesIO(b"no picture").getvalue())
    page = open_page()
    page.get_by_label("Start from a picture").set_input_files(file)
    page.fill("#prompt", "a fox")
    page.press("#prompt", "Enter")
    expect(page.locator("#notice-text")).to_contain_text("Start from a picture: ")
    expect(page.locator("#init_image")).to_have_attribute("aria-invalid", "true")
