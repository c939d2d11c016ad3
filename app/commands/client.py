"""What the commands ask of a service over HTTP, with every fault turned into a sentence."""

import time
import uuid
from types import TracebackType
from typing import Any, Self

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.commands.console import ExitCode, fail

__all__ = ["Client"]

POLL_FIRST_S = 0.1
POLL_MAX_S = 1.0
REFUSALS = (401, 403, 429, 503)
Json = dict[str, Any]


class Client:
    """One service, one key; every method ends the command with a sentence if it cannot answer."""

    def __init__(self, server: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(base_url=server, headers=headers, timeout=30.0)
        except httpx.InvalidURL as wrong:
            fail(f"--server {server!r} is not an address: {wrong}", ExitCode.BAD_INPUT)
        self.server = server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._http.close()

    def largest_size(self, model: str | None) -> str:
        """The largest of a model's sizes, as `"WxH"`; the default model's if `model` is None."""
        cards: list[Json] = self._json("GET", "/v1/models")["data"]
        if model is not None:
            chosen = [card for card in cards if card["id"] == model]
        else:
            chosen = [card for card in cards if card.get("is_default")] or cards
        if not chosen:
            names = ", ".join(repr(card["id"]) for card in cards) or "none"
            fail(f"the service has no model {model!r}; it has {names}", ExitCode.BAD_INPUT)
        sizes: list[str] = chosen[0]["sizes"]
        return max(sizes, key=lambda size: int(size.partition("x")[0]))

    def submit(self, body: Json) -> Json:
        """Submit a job."""
        return self._json(
            "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": uuid.uuid4().hex}
        )

    def finished_job(self, job: Json) -> Json:
        """Follow a job to its end with a progress bar; Ctrl-C cancels it."""
        try:
            job = self._follow(job)
        except KeyboardInterrupt:
            self._json("POST", f"/v1/jobs/{job['id']}/cancel")
            fail(f"canceled job {job['id']}", ExitCode.INTERRUPTED)
        if job["status"] != "succeeded":
            reason = (job.get("error") or {}).get("detail", "no reason given")
            fail(f"job {job['id']} {job['status']}: {reason}", ExitCode.JOB_FAILED)
        return job

    def image(self, url: str) -> bytes:
        """The bytes of one picture; `url` may be a path."""
        return self._request("GET", url).content

    def _follow(self, job: Json) -> Json:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        pause_s = POLL_FIRST_S
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("waiting", total=job["progress"]["total_steps"])
            while True:
                position = job.get("queue_position")
                waiting = f"waiting, place {position}" if position else "waiting"
                bar.update(
                    task,
                    description=waiting if job["status"] == "queued" else "drawing",
                    completed=job["progress"]["step"],
                )
                if job["finished_at"] is not None:
                    return job
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.2, POLL_MAX_S)
                job = self._json("GET", f"/v1/jobs/{job['id']}")

    def _json(self, method: str, path: str, **options: Any) -> Json:
        response = self._request(method, path, **options)
        try:
            found: Json = response.json()
        except ValueError:
            fail(f"{self.server} answered {path} with something that is not JSON")
        return found

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except (httpx.TransportError, httpx.InvalidURL) as fault:
            fail(
                f"no Avocat service at {self.server} ({fault}); start one with `avocat serve`, "
                "or name it with --server",
                ExitCode.UNREACHABLE,
            )
        if response.is_error:
            fail(_problem(response), _exit_code(response.status_code))
        return response


def _exit_code(status: int) -> ExitCode:
    if status in REFUSALS:
        return ExitCode.REFUSED
    return ExitCode.BAD_INPUT if status < 500 else ExitCode.FAILED


def _problem(response: httpx.Response) -> str:
    """An RFC 9457 answer as one sentence, with each wrong field."""
    try:
        problem = response.json()
        fields = [f"{error['pointer']}: {error['message']}" for error in problem.get("errors", [])]
        sentence = "; ".join(fields) or problem.get("detail") or problem["title"]
    except (ValueError, KeyError, AttributeError, TypeError):
        sentence = response.reason_phrase
    retry = response.headers.get("Retry-After")
    return f"{sentence} ({response.status_code}" + (f", try again in {retry} s)" if retry else ")")
