"""Words and phrases that no prompt may hold, in a file that is read again when it changes."""

import re
import time
import unicodedata
from pathlib import Path
from typing import Final

import structlog

__all__ = ["Blocklist", "PolicyError", "plain"]

_log = structlog.get_logger()
_LOOK_S: Final = 1.0
_MOST_BYTES: Final = 4 << 20
# Letters of other scripts that look like Latin ones (from Unicode's confusables), after case
# folding; and what is written for letters.
_ALIKE: Final = str.maketrans(
    "аеорсухіјѕԁһӏкмтвнαεικνορτυχıł0134578@$",  # noqa: RUF001
    "aeopcyxijsdhlkmtbhaeikvoptuxiloleastbas",
)


class PolicyError(Exception):
    """A policy that cannot be read or asked."""


class Blocklist:
    """One word or phrase a line; `*` at its end stands for any ending, `#` begins a comment."""

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            PolicyError: it cannot be read.
        """
        self._file = file
        self._version = self._looked_for()
        self._phrases = _Phrases(self._read())
        self._looked_at = time.monotonic()
        self._failed = False

    def found(self, text: str) -> str | None:
        """What of the list the text holds, as it is compared; None where it holds nothing."""
        self._refresh()
        found = (self._phrases.first_in(written) for written in _readings(text))
        return next((one for one in found if one is not None), None)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        try:
            version = self._looked_for()
            if version != self._version:
                self._phrases, self._version = _Phrases(self._read()), version
                _log.info("the blocklist was read again", file=str(self._file))
            self._failed = False
        except PolicyError as fault:  # the list as it was is better than none
            if not self._failed:
                _log.error("the blocklist cannot be read again", reason=str(fault))
            self._failed = True

    def _looked_for(self) -> tuple[int, int, int]:
        try:
            seen = self._file.stat()
        except OSError as fault:
            raise self._unreadable(fault.strerror or str(fault)) from fault
        return seen.st_mtime_ns, seen.st_size, seen.st_ino

    def _read(self) -> str:
        try:
            with self._file.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise self._unreadable(f"it is over {_MOST_BYTES} bytes")
            return data.decode("utf-8-sig")
        except OSError as fault:
            raise self._unreadable(fault.strerror or str(fault)) from fault
        except UnicodeDecodeError as fault:
            raise self._unreadable("it is not UTF-8") from fault

    def _unreadable(self, reason: str) -> PolicyError:
        return PolicyError(f"cannot read the blocklist {str(self._file)!r}: {reason}")


def plain(text: str) -> str:
    """Text as it is compared: folded case, no accents, nothing invisible, words apart by spaces.

    Compatibility forms (Unicode NFKC) are resolved, letters that look Latin become Latin.
    """
    return _letters(text)


def _readings(text: str) -> set[str]:
    """The text with figures read as letters, and with figures as they are."""
    return {_letters(text), _letters(text, digits=False)}


def _letters(text: str, *, digits: bool = True) -> str:
    """`digits`: whether 3 is read as e, and so on."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    parts = unicodedata.normalize("NFKD", folded)
    shown = "".join(one for one in parts if unicodedata.category(one) not in ("Mn", "Cf", "Me"))
    if digits:
        shown = shown.translate(_ALIKE)
    else:
        shown = "".join(one if one.isdigit() else one.translate(_ALIKE) for one in shown)
    return " ".join(re.findall(r"[^\W_]+", shown))


class _Phrases:
    """Phrases by their number of words, so that a text is looked through once whatever their count.

    `begun` are those of which the last word is only a beginning.
    """

    def __init__(self, text: str) -> None:
        self._whole: dict[int, set[str]] = {}
        self._begun: dict[int, set[str]] = {}
        for line in text.splitlines():
            entry = line.partition("#")[0].strip()
            kept = self._begun if entry.endswith("*") else self._whole
            for written in _readings(entry):
                if written:
                    kept.setdefault(written.count(" ") + 1, set()).add(written)

    def first_in(self, written: str) -> str | None:
        words = written.split(" ")
        for at in range(len(words)):
            for count, phrases in self._whole.items():
                if (part := " ".join(words[at : at + count])) in phrases:
                    return part
            for count, phrases in self._begun.items():
                if at + count > len(words):
                    continue
                part = " ".join(words[at : at + count])
                shortest = len(part) - len(words[at + count - 1]) + 1
                for end in range(shortest, len(part) + 1):
                    if part[:end] in phrases:
                        return part
        return None
