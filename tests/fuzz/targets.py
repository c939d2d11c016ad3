"""What is read of strangers, each as a function of bytes that raises only where something is wrong.

The first byte of an input says what the rest is; see `seeds` of each target.
"""

import asyncio
import dataclasses
import hashlib
import hmac
import json
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from PIL import Image

from app.errors import InvalidRequest
from app.jobs.recipe import PNG_TEXT, Recipe, recipe_in_xmp
from app.jobs.record import JobRecord, JobRequest, JobStatus, StoredImage
from app.main import create_app
from app.pictures import UnreadablePicture, read_picture
from app.resolve import resolve
from app.schemas.verification import Verification
from app.settings import Settings
from app.verification import _draft
from models import bundle
from models.bundle import CONFIG_FILE, DENOISER_FILE, UPSCALER_FILE
from models.errors import BundleError
from models.loading import load_model
from models.stable_diffusion import loading  # noqa: F401 - or it would not be instrumented
from models.torchvision_ops import declare_missing_operators
from tests.app.service import CARD, PNG
from tests.models.tiny import build_tiny_bundle
from worker.encoding import encode

__all__ = ["TARGETS", "Target"]

_BEGINNING = 12288  # bytes of a file that are changed; all of the header


class Target:
    """One reader: `one` is called with each input; kinds in `json_kinds` are JSON behind it."""

    json_kinds: frozenset[int] = frozenset()

    def seeds(self) -> list[bytes]:
        """Inputs to begin with."""
        raise NotImplementedError

    def one(self, data: bytes) -> None:
        """Read one input.

        Raises:
            Exception: the reader does what it should not.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds."""


class BundleTarget(Target):
    """A bundle with one file replaced; it is loaded, or refused with a BundleError."""

    json_kinds = frozenset({0, 1, 2, 3, 6})
    files = (
        *(CONFIG_FILE, DENOISER_FILE, UPSCALER_FILE, "clip/open_clip_config.json"),
        *(DENOISER_FILE, "clip/open_clip_model.safetensors", CONFIG_FILE),
    )

    def __init__(self) -> None:
        shared = Path("/dev/shm")  # noqa: S108 - a folder of our own in memory
        place = Path(
            tempfile.mkdtemp(prefix="avocat-fuzz-", dir=shared if shared.is_dir() else None)
        )
        self._path = build_tiny_bundle(place / "bundle")
        config = json.loads((self._path / CONFIG_FILE).read_text())
        (self._path / CONFIG_FILE).write_text(json.dumps(config | {"files": {}}))
        self._hashed = json.dumps(config).encode()
        self._sound = {name: (self._path / name).read_bytes() for name in set(self.files)}
        declare_missing_operators()
        import open_clip  # noqa: F401 - as above

        self._clip_of = bundle.load_clip
        self._own = (bundle.read_config(self._path).clip, self._path)
        self._clip = self._clip_of(*self._own)

    def seeds(self) -> list[bytes]:
        sound = [self._sound[name] for name in self.files]
        heads = [bytes([kind]) + _safetensors_parts(sound[kind])[0].rstrip() for kind in (1, 2)]
        plain = [bytes([kind]) + sound[kind][:_BEGINNING] for kind in (0, 3, 4, 5)]
        imported = {
            "kind": "stable_diffusion", "name": "sd", "source": str(self._path), "family": "sd",
            "parameterisation": "eps", "noise": {}, "sizes": [[64, 64]], "files": {},
        }  # fmt: skip
        return [*heads, *plain, b"\0" + self._hashed, b"\6" + json.dumps(imported).encode()]

    def one(self, data: bytes) -> None:
        kind, rest = (data[0] if data else 0) % len(self.files), data[1:]
        name = self.files[kind]
        if kind in (1, 2):  # the header anew, the tensors as they were
            _, tensors = _safetensors_parts(self._sound[name])
            rest = struct.pack("<Q", len(rest)) + rest + tensors
        if kind in (4, 5):  # another beginning
            rest += self._sound[name][len(rest) :]
        (self._path / name).write_bytes(rest)
        bundle.load_clip = self._clip_of if kind in (3, 5) else self._known_clip
        try:
            load_model(self._path)
        except BundleError as refused:
            _says_why(refused)
        finally:
            (self._path / name).write_bytes(self._sound[name])

    def _known_clip(self, *asked: Any) -> Any:
        """What was loaded once already, where nothing of it was replaced: half of the time."""
        return self._clip if asked == self._own else self._clip_of(*asked)


class PictureTarget(Target):
    """A picture as `/v1/verify` reads it: file, texts, XMP packet and recipe."""

    json_kinds = frozenset({4, 5})

    def seeds(self) -> list[bytes]:
        recipe = _recipe()
        image = Image.frombytes("RGBA", (16, 16), bytes(i * 7 % 256 for i in range(1024)))
        png = encode(image, recipe)
        webp = encode(image, recipe.model_copy(update={"output_format": "webp"}))
        packet, text = recipe.as_xmp().encode(), recipe.as_json().encode()
        return [b"\0" + png, b"\1" + webp, b"\2" + png, b"\3" + packet, b"\4" + text, b"\5" + text]

    def one(self, data: bytes) -> None:
        kind, rest = (data[0] if data else 0) % 6, data[1:]
        if kind == 3:
            _use(recipe_in_xmp(rest))
        elif kind == 4:
            _use(rest.decode("utf-8", "replace"))
        else:
            media_type = "image/webp" if kind == 1 else "image/png"
            sent = _with_text(rest) if kind == 5 else _with_checksums(rest) if kind == 2 else rest
            _look(sent, media_type)


class UrlTarget(Target):
    """`GET` of an image: path and query, then lines of `Range`, `If-Range` and `If-None-Match`."""

    def __init__(self) -> None:
        self._key, self._name = b"k" * 32, "01KB0000000000000000000000_e1000000_0.png"
        settings = Settings(signing_key=self._key.decode(), api_keys="owner:secret")
        self._app = create_app(settings)
        services, record = self._app.state.services, _record_of(self._name)
        self._app.state.services = dataclasses.replace(
            services, reader=_Reader(record), storage=_Storage(self._name)
        )
        self._loop = asyncio.new_event_loop()
        self._until = str(int(time.time()) + 10**6)

    def _url(self, name: str, expires: str) -> str:
        return f"/v1/images/{name}?expires={expires}&signature={self._signature(name, expires)}"

    def _signature(self, name: str, expires: str) -> str:
        return hmac.new(self._key, f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()

    def seeds(self) -> list[bytes]:
        good, old = self._url(self._name, self._until), self._url(self._name, "1700000000")
        lines = ["", "bytes=0-9", "bytes=-7", 'bytes=5-\n"x"', "\n\n*"]
        urls = [good, old, good + "&download=true", self._url("no.png", self._until)]
        urls += [good.replace(self._name, "..%2f..%2fetc%2fpasswd"), f"/v1/images/{self._name}"]
        return [
            f"\0{url}\n{line}".encode() for url in urls for line in lines[: 5 if url == good else 1]
        ]

    def one(self, data: bytes) -> None:
        target, *lines = data[1:].split(b"\n")
        if not all(0x21 <= byte <= 0x7E for byte in target):
            return  # h11 has answered it with 400
        if not unquote(target.decode("ascii")).startswith("/v1/images/"):
            return  # another route, which may want Redis
        status, headers, body = self._loop.run_until_complete(self._get(target, lines))
        assert status in (200, 206, 304, 307, 400, 401, 403, 404, 405, 410, 416, 422), status
        assert not any(b"\r" in value or b"\n" in value for _, value in headers)
        if status in (200, 206, 304, 416):
            self._must_be_signed(target)
            assert status != 200 or body == PNG
            assert body in PNG or status == 416

    def _must_be_signed(self, target: bytes) -> None:
        path, _, query = target.decode("ascii").partition("?")
        given = dict(parse_qsl(query, keep_blank_values=True))  # the last of each name
        name, expires = unquote(path).removeprefix("/v1/images/"), given.get("expires", "")
        assert name == self._name, target
        assert given.get("signature") == self._signature(name, expires), target
        assert int(expires) > time.time(), target

    def close(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _get(self, target: bytes, lines: list[bytes]) -> tuple[int, list[Any], bytes]:
        raw, _, query = target.partition(b"?")
        names = (b"range", b"if-range", b"if-none-match")
        headers = [
            (name, line.strip())
            for name, line in zip(names, lines, strict=False)
            if line.strip() and not set(line) & {0, 10, 13}
        ]
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": unquote(raw.decode("ascii")), "raw_path": raw, "query_string": query,
            "root_path": "", "headers": [(b"host", b"test"), *headers], "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip
        said: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            said.append(message)

        await self._app(scope, receive, send)
        body = b"".join(message.get("body", b"") for message in said[1:])
        return said[0]["status"], list(said[0]["headers"]), body


class _Reader:
    def __init__(self, record: JobRecord) -> None:
        self._record = record

    async def get(self, job_id: str) -> JobRecord | None:
        return self._record if job_id == self._record.id else None


class _Storage:
    link_origin = None

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, name: str) -> bytes:
        if name != self._name:
            raise AssertionError(f"{name!r} was read")
        return PNG


def _record_of(name: str) -> JobRecord:
    image = StoredImage(
        index=0, name=name, seed=1, width=16, height=16, content_type="image/png",
        bytes=len(PNG), sha256=hashlib.sha256(PNG).hexdigest(),
    )  # fmt: skip
    request = JobRequest.model_validate(
        {
            "prompt": "a cat", "negative_prompt": None, "model": "tiny", "n": 1, "best_of": 1,
            "seed": 1, "steps": 8, "sampler": "ddim", "guidance_scale": 3.0,
            "guidance_interval": (0.0, 1.0), "size": "16x16", "background": "transparent",
            "output_format": "png", "priority": "normal", "webhook_url": None,
        }
    )  # fmt: skip
    return JobRecord(
        id=name.partition("_")[0], owner="owner", created_at=1.0, expires_at=1e12,
        retention_s=1, request=request, total_steps=8, metadata={}, previews=0,
        status=JobStatus.SUCCEEDED, images=[image], finished_at=2.0,
    )  # fmt: skip


def _recipe() -> Recipe:
    return Recipe(
        prompt="a red apple", negative_prompt="é", seed=7, steps=20, sampler="dpmpp_2m",
        guidance_scale=3.0, guidance_interval=(0.0, 1.0), size="16x16", background="transparent",
        output_format="png", model="tiny", bundle_sha256=CARD.bundle_sha256,
        fingerprint=CARD.fingerprint,
    )  # fmt: skip


def _look(sent: bytes, media_type: str) -> None:
    try:
        picture = read_picture(BytesIO(sent), media_type, 32 * 32)
    except UnreadablePicture as refused:
        _says_why(refused)
        return
    assert picture.pixels is None or picture.pixels.size == (picture.width, picture.height)
    if picture.recipe is not None:
        _judge(picture.recipe)


def _says_why(refused: Exception) -> None:
    if not str(refused).strip():
        raise AssertionError("refused without a word")


def _use(text: str | None) -> None:
    try:
        recipe = Recipe.read(text) if text is not None else None
    except ValueError:
        return
    if recipe is not None:
        assert Recipe.read(recipe.as_json()) == recipe
        _judge(recipe)


def _judge(recipe: Recipe) -> None:
    """What becomes of a stranger's recipe: a draft that is drawn or refused, and an answer."""
    try:
        resolve(_draft(recipe, CARD, {}), CARD)
    except InvalidRequest as refused:
        _says_why(refused)
    answer = Verification(
        verdict="different", reason="x", recipe=recipe, fingerprint=recipe.fingerprint, job_id=None
    )
    assert json.loads(answer.model_dump_json())["recipe"]["seed"] == recipe.seed


def _safetensors_parts(data: bytes) -> tuple[bytes, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return data[8 : 8 + length], data[8 + length :]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the length and the checksum that they should, as far as it goes."""
    chunks, at = [data[:8]], 8
    while at + 8 <= len(data):
        length = min(struct.unpack(">I", data[at : at + 4])[0], len(data) - at - 8)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        chunks.append(_chunk(kind, content))
        at += 12 + length
    return b"".join(chunks)


def _with_text(text: bytes) -> bytes:
    """A PNG with this recipe, compressed as many programs write it."""
    out = BytesIO()
    Image.new("RGBA", (16, 16)).save(out, "PNG")
    head, rest = out.getvalue()[:33], out.getvalue()[33:]
    content = PNG_TEXT.encode() + b"\0\1\0\0\0" + zlib.compress(text)
    return head + _chunk(b"iTXt", content) + rest


TARGETS: dict[str, Callable[[], Target]] = {
    "bundle": BundleTarget,
    "picture": PictureTarget,
    "url": UrlTarget,
}
