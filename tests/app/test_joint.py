"""What many want at once is done once, and its end is everyone's."""

import asyncio

import pytest

from app.jobs.joint import Joint


async def test_who_comes_meanwhile_shares_the_end() -> None:
    runs = 0

    async def hang_and_fail() -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.05)
        raise TimeoutError

    joint = Joint(hang_and_fail)
    ends = await asyncio.gather(*(joint.done() for _ in range(20)), return_exceptions=True)
    assert {type(end) for end in ends} == {TimeoutError}
    assert runs == 1  # and not one after the other, each for as long
    with pytest.raises(TimeoutError):
        await joint.done()
    assert runs == 2


async def test_who_goes_takes_nothing_from_the_others() -> None:
    goes_on, done = asyncio.Event(), []

    async def work() -> None:
        await goes_on.wait()
        done.append(1)

    joint = Joint(work)
    first, second = asyncio.create_task(joint.done()), asyncio.create_task(joint.done())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    await second
    assert first.cancelled()
    assert done == [1]
