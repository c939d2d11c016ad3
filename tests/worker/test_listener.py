"""Messages on Redis' channels become mail."""

from collections.abc import Iterator
from queue import SimpleQueue

import pytest
import redis
from rq.command import send_command, send_shutdown_command

from app.keys import CANCELS, WAKEUPS
from tests.worker.conftest import wait_for
from worker.listener import Listener
from worker.mail import Cancel, Mail, StopRequested, WorkArrived


@pytest.fixture
def canceled() -> list[str]:
    return []


@pytest.fixture
def mail(client: redis.Redis, canceled: list[str]) -> Iterator[Mail]:
    mail: Mail = SimpleQueue()
    listener = Listener(client, "worker", mail, canceled.append)
    listener.start()
    assert mail.get(timeout=30) == WorkArrived()  # it listens now
    yield mail
    listener.stop()


def test_messages(client: redis.Redis, mail: Mail, canceled: list[str]) -> None:
    client.publish(WAKEUPS, "normal")
    client.publish(CANCELS, "job")
    assert [mail.get(timeout=30) for _ in range(2)] == [WorkArrived(), Cancel("job")]
    assert canceled == ["job"]


def test_commands_of_rq(client: redis.Redis, mail: Mail, canceled: list[str]) -> None:
    client.publish("rq:pubsub:worker", b"\xff")
    send_command(client, "worker", "kill-horse")
    send_command(client, "worker", "stop-job", job_id="job")
    send_shutdown_command(client, "worker")
    send_shutdown_command(client, "other")
    assert [mail.get(timeout=30) for _ in range(2)] == [Cancel("job"), StopRequested()]
    assert canceled == ["job"]


def test_it_listens_again_after_a_cut(client: redis.Redis, mail: Mail) -> None:
    client.client_kill_filter(_type="pubsub", skipme=True)
    wait_for(lambda: client.pubsub_numsub(CANCELS)[0][1] == 1)
    client.publish(CANCELS, "job")
    letters = [mail.get(timeout=30)]
    while letters[-1] == WorkArrived():
        letters.append(mail.get(timeout=30))
    assert letters[-1] == Cancel("job")
