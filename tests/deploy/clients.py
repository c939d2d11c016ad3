"""Clients that keep asking while the service behind a gateway is changed."""

import itertools
import threading
from typing import Any

import httpx

_AT_ONCE = 4


class Clients:
    """Requests without pause, each tenth a submission, until told to end and `least` were sent.

    Every second submission comes without an Idempotency-Key, so that no gateway may repeat it.
    """

    def __init__(self, url: str, least: int) -> None:
        self._url, self._least = url, least
        self._told_to_end = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(_AT_ONCE)]
        self._count = itertools.count()
        self.failures: list[Any] = []
        self.answered = 0

    @property
    def done(self) -> bool:
        """Whether as many were answered as should be."""
        return self.answered >= self._least or bool(self.failures)

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._told_to_end.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not (self._told_to_end.is_set() and self.done):
                self._ask_once(http, next(self._count))

    def _ask_once(self, http: httpx.Client, number: int) -> None:
        try:
            answer = (
                self._submit(http, number) if number % 10 == 0 else http.get("/v1/jobs?limit=1")
            )
        except httpx.TransportError as fault:
            self.failures.append(repr(fault))
            return
        self.answered += answer.is_success
        if not answer.is_success:
            self.failures.append((answer.status_code, answer.text))

    def _submit(self, http: httpx.Client, number: int) -> httpx.Response:
        """A submission that is taken back at once, so that the workers have little to do."""
        key = {"Idempotency-Key": f"{id(self)}-{number}"} if number % 20 else {}
        job = http.post("/v1/jobs", json={"prompt": "a plum", "steps": 1}, headers=key)
        if not job.is_success:
            return job
        return http.post(f"{job.headers['location']}/cancel")
