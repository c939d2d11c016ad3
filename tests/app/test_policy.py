"""What is not drawn: by a list, and by somebody else's word."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from app.policy.blocklist import Blocklist, PolicyError, plain
from app.policy.checking import Policy
from tests.app.service import Service

Serve = Callable[..., AbstractAsyncContextManager[Service]]
LIST = "# what we do not draw\nweapon*\nnaked people\nKätzchen\nlo.li # and a comment\n"


@pytest.fixture
def blocklist(tmp_path: Path) -> Path:
    file = tmp_path / "blocklist.txt"
    file.write_text(LIST, "utf-8")
    return file


@pytest.mark.parametrize(
    "prompt",
    [
        "a weapon",
        "Weaponry on a table",
        "WEAPON!",
        "a w\u200beapon",  # zero width
        "a we\u00adapon",  # soft hyphen
        "a ｗｅａｐｏｎ",
        "a we\u0430pon",  # a Cyrillic a
        "a w3ap0n",
        "a we@pon",
        "a wéapön",
        "a we\u0301\u0327apon",
        "naked\n people",
        "naked—people",
        "naked   people in a park",
        "ein kätzchen",
        "ein KATZCHEN",
        "lo li",
    ],
)
def test_what_is_on_the_list_is_found(blocklist: Path, prompt: str) -> None:
    assert Blocklist(blocklist).found(prompt) is not None


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat inside an avocado",
        "snaked peoples",
        "weap on",
        "people, not naked",
        "lolipop",
        "🥑",
    ],
)
def test_what_is_not_passes(blocklist: Path, prompt: str) -> None:
    assert Blocklist(blocklist).found(prompt) is None


def test_nothing_around_it_hides_a_word(tmp_path: Path) -> None:
    """But letters that touch it: they make another word."""
    file = tmp_path / "list"
    file.write_text("forbidden fruit")
    blocklist = Blocklist(file)

    @given(st.text(), st.sampled_from(["", " ", ", ", "\u200b ", "\n"]), st.text())
    def found(before: str, between: str, after: str) -> None:
        text = f"{before} .{between}forbidden{between} fruit. {after}"
        assert blocklist.found(text) == "forbidden fruit"

    found()


@given(st.text())
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert plain(plain(text)) == plain(text)


def test_the_file_is_read_again_when_it_changes(
    blocklist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.policy.blocklist._LOOK_S", 0.0)
    found = Blocklist(blocklist)
    blocklist.write_text("broccoli")
    assert found.found("a weapon") is None
    assert found.found("broccoli") == "broccoli"
    blocklist.unlink()
    assert found.found("broccoli") == "broccoli"  # better the old list than none
    blocklist.write_bytes(b"\xff")
    assert found.found("broccoli") == "broccoli"
    blocklist.write_text("")
    assert found.found("broccoli") is None


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * ((4 << 20) + 1), None])
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "list"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PolicyError, match="cannot read the blocklist"):
        Blocklist(file)


def test_a_long_list_is_fast(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text("\n".join(f"word{i} number{i}*" for i in range(20_000)))
    found = Blocklist(file)
    began = time.perf_counter()
    assert found.found("cat " * 250) is None
    assert time.perf_counter() - began < 1.0


async def test_refusals_are_problems_of_their_own_kind(serve: Serve, blocklist: Path) -> None:
    async with serve(blocklist=blocklist) as service:
        for fields in ({"prompt": "a weapon"}, {"prompt": "a cat", "negative_prompt": "weapons"}):
            answer = await service.client.post("/v1/jobs", json=fields)
            assert answer.status_code == 422
            problem = answer.json()
            assert problem["type"] == "/problems/content-policy-violation"
            assert "'weapon" in problem["detail"]
        answer = await service.client.post("/v1/images/generations", json={"prompt": "weapon"})
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "content_policy_violation"
        assert (await service.client.get("/v1/jobs")).json()["data"] == []
        counted = (await service.client.get("/metrics")).text
        assert 'avocat_prompt_refusals_total{by="blocklist"} 3.0' in counted
        assert await service.submit(prompt="a cat")


class Moderator:
    """An endpoint of OpenAI's form, which flags the word violence."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.tokens: list[str] = []
        self.answer: bytes | None = None
        self.waits_s = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = (await receive())["body"]
        self.asked.append(json.loads(body)["input"])
        self.tokens.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        await asyncio.sleep(self.waits_s)
        results = [
            {"flagged": "violence" in text, "categories": {"violence": "violence" in text}}
            for text in self.asked[-1]
        ]
        body = self.answer if self.answer is not None else json.dumps({"results": results}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def moderating() -> AsyncIterator[tuple[Moderator, str]]:
    moderator = Moderator()
    config = uvicorn.Config(moderator, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield moderator, f"http://127.0.0.1:{port}/v1/moderations"
    server.should_exit = server.force_exit = True
    await task


async def test_the_endpoint_is_asked_about_both_prompts(serve: Serve) -> None:
    async with (
        moderating() as (moderator, url),
        serve(moderation_url=url, moderation_token="t0k3n") as service,
    ):
        await service.submit(prompt="a cat", negative_prompt="dogs")
        answer = await service.client.post("/v1/jobs", json={"prompt": "much violence"})
        assert answer.status_code == 422
        assert "(violence)" in answer.json()["detail"]
        assert moderator.asked == [["a cat", "dogs"], ["much violence"]]
        assert set(moderator.tokens) == {"Bearer t0k3n"}


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"results": []}', b'{"results": [{}]}', b"[" * 9])
@pytest.mark.parametrize("fail_open", [False, True])
async def test_an_answer_that_is_none_fails_as_it_is_set(
    serve: Serve, answer: bytes, fail_open: bool
) -> None:
    async with moderating() as (moderator, url):
        moderator.answer = answer
        async with serve(moderation_url=url, moderation_fail_open=fail_open) as service:
            got = await service.client.post("/v1/jobs", json={"prompt": "a cat"})
            assert got.status_code == (202 if fail_open else 503)
            if not fail_open:
                assert got.json()["type"] == "/problems/unavailable"
                assert int(got.headers["Retry-After"]) > 0
            counted = (await service.client.get("/metrics")).text
            assert "avocat_moderation_failures_total 1.0" in counted


async def test_an_endpoint_that_is_slow_or_away_does_not_hold_anybody_up(serve: Serve) -> None:
    async with moderating() as (moderator, url):
        moderator.waits_s = 3.0
        async with serve(moderation_url=url, moderation_timeout_s=0.2) as service:
            began = time.monotonic()
            got = await service.client.post("/v1/jobs", json={"prompt": "a cat"})
            assert got.status_code == 503
            assert time.monotonic() - began < 10
        moderator.waits_s = 0.0
    async with serve(moderation_url="http://127.0.0.1:1/") as service:
        got = await service.client.post("/v1/jobs", json={"prompt": "a cat"})
        assert got.status_code == 503


def test_policy_is_nothing_unless_it_is_set() -> None:
    from app.metrics import Metrics
    from app.settings import Settings

    policy = Policy(Settings(), Metrics())
    asyncio.run(policy.check("a weapon", None))
