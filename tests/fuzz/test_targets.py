"""The fuzzer's targets take their seeds, and a few hundred changes of them, in every test run."""

from contextlib import closing
from random import Random

import pytest

from tests.fuzz.mutation import mutate
from tests.fuzz.targets import TARGETS


def blindly(chance: Random, data: bytes) -> bytes:
    """Some bytes changed, and sometimes a piece left out."""
    found = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        if found:
            found[chance.randrange(len(found))] = chance.randrange(256)
    at = chance.randrange(len(found) + 1)
    return bytes(found[:at] + found[at + chance.choice((0, 0, 1, 9, 99)) :])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "times"), [("bundle", 4), ("picture", 60), ("url", 12)])
def test_no_input_does_what_it_should_not(name: str, times: int) -> None:
    with closing(TARGETS[name]()) as target:
        chance = Random(6)
        for seed in target.seeds():
            target.one(seed)
            data = seed
            for _ in range(times):
                is_json = data[0] in target.json_kinds
                number = chance.randrange(2**31)
                data = mutate(data, 16384, number, is_json, lambda old, _: blindly(chance, old))
                target.one(data)


def test_a_forged_url_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness can fail: with a signature that fits everything, it does."""
    with closing(TARGETS["url"]()) as target:
        good = next(seed for seed in target.seeds() if b"signature=" in seed)
        forged = good.replace(b"signature=", b"signature=0")
        target.one(forged)
        monkeypatch.setattr("app.signing.hmac.compare_digest", lambda *_: True)
        with pytest.raises(AssertionError):
            target.one(forged)
