"""Changes of inputs that keep their form: JSON stays JSON, so that what reads it is reached."""

import json
import random
from collections.abc import Callable
from typing import Any

__all__ = ["mutate"]

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 64, 65536, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308),
    *(-0.0, "", "\0", "a" * 300, "../x", "/", ".", "é\u202e", [], {}, [[]], [1, 2, 4], {"a": 1}),
)


def mutate(
    data: bytes, most_bytes: int, seed: int, is_json: bool, blind: Callable[[bytes, int], bytes]
) -> bytes:
    """Another input; the first byte, the kind of input, stays. `blind` knows no form."""
    chance = random.Random(seed)
    kind, rest = data[:1] or b"\0", data[1:]
    if is_json and chance.random() < 0.7:
        try:
            rest = json.dumps(_changed(json.loads(rest), chance)).encode()
        except (ValueError, RecursionError):
            rest = blind(rest, most_bytes - 1)
    else:
        rest = blind(rest, most_bytes - 1)
    return kind + rest[: most_bytes - 1]


def _changed(value: Any, chance: random.Random) -> Any:
    """The same with one place changed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        return _changed_object(value, chance)
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        how = chance.random()
        if how < 0.6:
            return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
        return value[:at] + value[at + 1 :] if how < 0.8 else value + value[at:]
    if isinstance(value, int | float) and chance.random() < 0.6:
        return value + chance.choice((1, -1, 0.5, value, -2 * value, 8, 4096))
    return chance.choice(_ODD)


def _changed_object(value: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    name, how = chance.choice(list(value)), chance.random()
    if how < 0.8:
        return value | {name: _changed(value[name], chance)}
    if how < 0.9:
        return {key: one for key, one in value.items() if key != name}
    return value | {chance.choice((f"{name}x", "", "\0", "format", "kind")): chance.choice(_ODD)}
