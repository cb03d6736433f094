# SPDX-License-Identifier: Apache-2.0
"""The page of the service in a real browser, with a real service and a camera."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "video"))  # clip_maker

from clients import connect
from clip_maker import write_clip
from live_browser import CHROMIUM, DRIVER, Browser
from pictures import jpeg
from waiting import wait_for

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver on this machine"
)
TOKEN = "a-long-enough-token.1"
# Mean brightness of the shown picture.
LIGHT = """const c = document.getElementById("picture"), p = c.getContext("2d");
const d = p.getImageData(0, 0, c.width, c.height).data;
let sum = 0; for (let i = 0; i < d.length; i += 4) sum += d[i] + d[i + 1] + d[i + 2];
return sum / (d.length / 4);"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


def seen(browser: Browser) -> str:
    return browser.text("#facts")


def test_a_camera_is_shown_with_its_tokens_and_asked_about(start, browser: Browser) -> None:
    service = start("--max-new-tokens", 8)
    browser.open(f"http://{service.address}/")
    browser.wait_for('document.getElementById("model").textContent === "tiny-llava"')
    assert browser.run('return document.getElementById("login").hidden')
    browser.run(
        'document.getElementById("fps").value = 5; document.getElementById("camera").click()'
    )
    browser.wait_for('document.getElementById("facts").textContent.includes("seen")')
    assert "Pushing the camera" in browser.text("#status")
    first = seen(browser)
    browser.wait_for(f'document.getElementById("facts").innerText !== {json.dumps(first)}')
    assert "6 of 16" in seen(browser)
    assert "0 dropped" in seen(browser) or "dropped" in browser.text("#status")

    browser.run(
        'document.getElementById("question").value = "what is it?";'
        'document.getElementById("send").click()'
    )
    browser.wait_for('document.querySelector("#answers .facts")?.textContent.includes("frames")')
    answer = browser.text("#answers article")
    assert answer.startswith("what is it?")
    assert "first token after" in answer
    assert browser.text("#answers p").strip()

    browser.run('document.getElementById("stop").click()')
    browser.wait_for('document.getElementById("status").textContent === "Stopped."')
    # The masks are layers over the picture: without them it is lighter.
    masked = browser.run(LIGHT)
    browser.run('document.getElementById("layer-dropped").click()')
    plain = browser.run(LIGHT)
    assert plain > 1.1 * masked
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    requests = browser.run(
        "return performance.getEntriesByType('resource').map((r) => new URL(r.name).host)"
    )
    assert set(requests) == {service.address}
    assert browser.log() == []


def test_the_token_is_asked_for_and_another_camera_can_be_watched(start, browser: Browser) -> None:
    service = start("--token", TOKEN)
    browser.open(f"http://{service.address}/")
    browser.wait_for('!document.getElementById("login").hidden')
    browser.run(
        f'document.getElementById("token").value = "{TOKEN}";'
        'document.querySelector("#login button").click()'
    )
    browser.wait_for('document.getElementById("model").textContent === "tiny-llava"')
    headers = {"Authorization": f"Bearer {TOKEN}"}
    address = f"ws://{service.address}/v1/streams/door/frames"
    with connect(address, additional_headers=headers) as socket:
        socket.send(jpeg(0))
        socket.recv()
        browser.run(
            'document.getElementById("stream").value = "door";'
            'document.getElementById("watch").click()'
        )

        def is_shown() -> bool:
            socket.send(jpeg(next(seeds)))
            socket.recv()
            return "seen" in seen(browser)

        seeds = itertools.count(1)
        wait_for(is_shown)
    assert "Encoded" in seen(browser)
    assert browser.run('return document.getElementById("picture").width') == 64
    # The refusal before the token was given is all that the console tells.
    assert all("401" in line for line in browser.log())


def test_a_file_is_pushed(start, browser: Browser, tmp_path: Path) -> None:
    service = start()
    browser.open(f"http://{service.address}/")
    clip = write_clip(tmp_path / "clip.mp4", 12, rate=4, codec="libx264")
    browser.choose_file("#file", clip)
    browser.wait_for('document.getElementById("facts").textContent.includes("seen")')
    browser.wait_for('document.getElementById("status").textContent === "clip.mp4 has ended."')
    assert browser.log() == []


def test_a_stream_that_is_not_there_is_said(start, browser: Browser) -> None:
    service = start()
    browser.open(f"http://{service.address}/")
    browser.run('document.getElementById("watch").click()')
    browser.wait_for('document.getElementById("status").textContent.includes("there is no stream")')
    browser.run(
        'document.getElementById("question").value = "what?";'
        'document.getElementById("send").click()'
    )
    browser.wait_for('document.querySelector("#answers .facts")?.textContent.includes("no stream")')


def test_warnings_are_shown(start, browser: Browser) -> None:
    service = start()
    browser.open(f"http://{service.address}/")
    # A clock that is set back while the camera runs.
    browser.run(
        "let clock = 5e12; Date.now = () => (clock -= 1000);"
        'document.getElementById("fps").value = 5; document.getElementById("camera").click()'
    )
    browser.wait_for('document.getElementById("warning").textContent.includes("went back")')
    assert not browser.run('return document.getElementById("warning").hidden')
    browser.wait_for('document.getElementById("facts").textContent.includes("seen")')


def test_a_stream_that_was_deleted_is_said(start, browser: Browser) -> None:
    service = start()
    browser.open(f"http://{service.address}/")
    browser.run('document.getElementById("camera").click()')
    browser.wait_for('document.getElementById("facts").textContent.includes("seen")')
    browser.run('fetch("v1/streams/camera", { method: "DELETE" })')
    browser.wait_for(
        'document.getElementById("status").textContent === "The stream has ended: deleted."'
    )
