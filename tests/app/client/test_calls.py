"""What the client asks for, and what it makes of the answers, without a service."""

import hashlib
import json

import httpx
import pytest

from app.client import (
    Avocat,
    BadRequest,
    Ended,
    JobCanceled,
    JobTimeout,
    NotFound,
    Preview,
    Progressed,
    Retries,
    ServerError,
    StatusChanged,
    Unreachable,
    calls,
)
from app.client.calls import Listen, Send
from app.client.types import Image
from tests.app.client.playing import JOB, STREAM, Play, job, problem, sent

RETRIES = Retries(count=2)
LOST = httpx.ConnectError("refused")
END = sent("succeeded", json.dumps(JOB | {"status": "succeeded"}), "3")


def test_every_try_of_a_submission_has_the_same_key() -> None:
    play = Play(LOST, problem(503, "queue-full"), job())
    play.run(calls.submit("a red apple", {"seed": 7}, None, RETRIES))
    first, second, third = (step for step in play.asked if isinstance(step, Send))
    assert first == second == third
    assert first.json == {"prompt": "a red apple", "seed": 7}
    assert len(first.headers["Idempotency-Key"]) == 32
    assert len(play.pauses) == 2


def test_what_stands_for_an_id_stays_one_part_of_the_path() -> None:
    play = Play(problem(404, "job-not-found"), problem(404, "job-not-found"))
    for given in ("../models", "a\nb\udcff?x"):
        with pytest.raises(NotFound):
            play.run(calls.get(given, RETRIES))
    assert [step.path for step in play.asked if isinstance(step, Send)] == [
        "/v1/jobs/..%2Fmodels",
        "/v1/jobs/a%0Ab%FF%3Fx",
    ]


@pytest.mark.parametrize("fault", [httpx.DecodingError("no gzip"), httpx.TooManyRedirects("round")])
def test_an_answer_that_is_none_is_unreachable(fault: httpx.RequestError) -> None:
    with pytest.raises(Unreachable, match=str(fault)):
        Play(fault, fault, fault).run(calls.models(RETRIES))


@pytest.mark.parametrize("key", ["a\nb", "schl\u00fcssel"])
def test_a_key_that_no_header_can_say_is_no_key_and_is_not_told(key: str) -> None:
    with pytest.raises(ValueError, match=r"the API key should be printable ASCII$"):
        Avocat("http://127.0.0.1:8000", key)


def test_two_submissions_have_two_keys_and_a_given_one_is_kept() -> None:
    play = Play(job(), job(), job())
    for key in (None, None, "mine"):
        play.run(calls.submit("a fox", {}, key, RETRIES))
    keys = [step.headers["Idempotency-Key"] for step in play.asked]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_patience_ends() -> None:
    with pytest.raises(Unreachable, match="refused"):
        Play(LOST, LOST, LOST).run(calls.get("01J", RETRIES))
    full = problem(503, "queue-full")
    with pytest.raises(ServerError) as ended:
        Play(full, full, full).run(calls.get("01J", RETRIES))
    assert ended.value.problem.type == "/problems/queue-full"
    assert ended.value.retry_after_s == 0


def test_a_wrong_request_is_not_sent_again() -> None:
    play = Play(problem(422, "invalid-request"))
    with pytest.raises(BadRequest, match=r"so it is \(422\)"):
        play.run(calls.submit("x", {}, None, RETRIES))
    assert play.pauses == []


def test_answers_that_are_not_avocats() -> None:
    with pytest.raises(ServerError, match="Internal Server Error"):
        Play(httpx.Response(500, text="<html>")).run(calls.get("01J", RETRIES))
    other = httpx.Response(200, text="<html>", request=httpx.Request("GET", "http://other/"))
    with pytest.raises(Unreachable, match="not Avocat's"):
        Play(other).run(calls.get("01J", RETRIES))


def test_events_become_what_they_say() -> None:
    play = Play(
        STREAM,
        sent("status", '{"status": "queued", "queue_position": 1, "eta_seconds": 2.5}', "1"),
        sent("progress", '{"step": 4, "total_steps": 8, "fraction": 0.5}', "2"),
        sent("preview", '{"index": 1, "data_url": "data:image/png;base64,aGk="}', "2"),
        sent("something-new", "{"),
        END,
    )
    ended = play.run(calls.follow("01J", 3, None, RETRIES))
    status, progress, preview, end = play.events
    assert status == StatusChanged("queued", 1, 2.5)  # type: ignore[arg-type]
    assert progress == Progressed(4, 8)
    assert preview == Preview(1, "image/png", b"hi")
    assert end == Ended(ended)
    [listen] = play.asked
    assert isinstance(listen, Listen)
    assert listen.params == {"previews": 3}


def test_a_lost_stream_goes_on_where_it_broke_off() -> None:
    running = sent("progress", '{"step": 1, "total_steps": 8}', "41")
    play = Play(STREAM, running, httpx.ReadError("cut"), job("running"), STREAM, END)
    play.run(calls.follow("01J", 0, None, RETRIES))
    first, poll, second = play.asked
    assert "Last-Event-ID" not in first.headers
    assert poll == Send("GET", "/v1/jobs/01J")
    assert second.headers["Last-Event-ID"] == "41"


def test_without_a_stream_the_job_is_asked_for() -> None:
    half = {"step": 4, "total_steps": 8, "fraction": 0.5}
    play = Play(
        problem(404, "not-found"), job(), job(), job("running", progress=half), job("succeeded")
    )
    play.run(calls.follow("01J", 0, None, RETRIES))
    assert [type(event) for event in play.events] == [
        StatusChanged, StatusChanged, Progressed, Ended
    ]  # fmt: skip
    assert sum(isinstance(step, Listen) for step in play.asked) == 1


def test_streams_that_say_nothing_are_given_up() -> None:
    empty = [STREAM, None, job("running")]
    play = Play(*empty * 3, job("running"), job("succeeded"))
    play.run(calls.follow("01J", 0, None, RETRIES))
    assert sum(isinstance(step, Listen) for step in play.asked) == 3


def test_no_such_job() -> None:
    missing = problem(404, "job-not-found")
    with pytest.raises(NotFound):
        Play(missing, missing).run(calls.follow("01J", 0, None, RETRIES))


def test_waiting_ends_with_the_job_or_the_time() -> None:
    assert Play(STREAM, END).run(calls.wait("01J", None, RETRIES)).status == "succeeded"
    with pytest.raises(JobCanceled):
        Play(STREAM, sent("canceled", json.dumps(JOB | {"status": "canceled"}))).run(
            calls.wait("01J", None, RETRIES)
        )
    with pytest.raises(JobTimeout) as late:
        Play(job()).run(calls.wait("01J", 0.0, RETRIES))
    assert late.value.job_id == "01J"


def test_bytes_are_compared_with_the_sha256() -> None:
    image = Image(
        **{"index": 0, "url": "/v1/images/x", "seed": 7, "width": 1, "height": 1, "bytes": 2},
        **{"content_type": "image/png", "clip_score": None},
        sha256=hashlib.sha256(b"hi").hexdigest(),
    )
    good, bad = httpx.Response(200, content=b"hi"), httpx.Response(200, content=b"ho")
    assert Play(good).run(calls.download(image, RETRIES)) == b"hi"
    with pytest.raises(Unreachable, match="sha256"):
        Play(bad).run(calls.download(image, RETRIES))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n...", "image/png"),
        (b"RIFF\0\0\0\0WEBPVP8L", "image/webp"),
        (b"\xff\xd8\xff", "image/jpeg"),
    ],
)
def test_a_picture_is_sent_as_what_it_is(data: bytes, kind: str) -> None:
    said = {"verdict": "different", "reason": "x", "recipe": None, "fingerprint": None}
    play = Play(httpx.Response(200, json=said | {"job_id": None}))
    assert play.run(calls.verify(data, 99.0, RETRIES)).verdict == "different"
    [step] = play.asked
    assert isinstance(step, Send)
    assert (step.headers["Content-Type"], step.content, step.timeout_s) == (kind, data, 99.0)
