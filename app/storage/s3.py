"""Images in a bucket that speaks S3: Amazon's, Ceph's, MinIO's, Cloudflare's and others."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from app.storage.base import IMAGE_NAME, StorageError, StoredFile, check_name

__all__ = ["S3Storage"]

# Whoever has the link may keep what it leads to, which never changes under its name.
_CACHE = "private, max-age=31536000, immutable"
_TYPES = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg"}
# Deletions happen between heartbeats of a worker, so they are soon given up; they come again.
_SHORT_S = 2.0


class S3Storage:
    """Images under `s3://bucket/prefix`; an object is there whole, and durably, or not at all.

    Args:
        location: `s3://bucket` or `s3://bucket/prefix`.
        endpoint: where the service is; None: Amazon's, in the region.
        public_endpoint: where clients reach the service, if elsewhere.
        config: further options of obstore's `S3Config`: region, keys. What is not among them comes
            from the standard `AWS_*` variables, and roles of the machine, pod or task.
        links: whether clients are sent to the bucket; else all bytes pass through the API.
        patience_s: seconds for which a request that fails is tried again.
    """

    def __init__(
        self,
        location: str,
        *,
        endpoint: str | None = None,
        public_endpoint: str | None = None,
        config: Mapping[str, Any] | None = None,
        links: bool = True,
        patience_s: float = 20.0,
    ) -> None:
        bucket, _, prefix = location.removeprefix("s3://").strip("/").partition("/")
        self._location = location

        def store(at: str | None, seconds: float, **more: str) -> S3Store:
            options = dict(config or {}) | ({"endpoint": at} if at else {}) | more
            return S3Store(
                bucket,
                prefix=prefix or None,
                config=options,  # type: ignore[arg-type] # its names are obstore's
                client_options={
                    "allow_http": True,  # an http:// endpoint says so itself
                    "connect_timeout": timedelta(seconds=min(3.0, seconds)),
                    "timeout": timedelta(seconds=min(20.0, seconds)),
                },
                retry_config={"max_retries": 20, "retry_timeout": timedelta(seconds=seconds)},
            )

        self._store = store(endpoint, patience_s)
        self._hasty = store(endpoint, _SHORT_S)
        self._public = store(public_endpoint or endpoint, _SHORT_S) if links else None
        self.link_origin: str | None = None
        if links:  # seen in a link of no worth: a real one may need a role's keys, fetched first
            nobody = {"access_key_id": "x", "secret_access_key": "x"}
            at = store(public_endpoint or endpoint, _SHORT_S, **nobody)
            found = urlsplit(obstore.sign(at, "GET", "x", timedelta(seconds=1)))
            self.link_origin = f"{found.scheme}://{found.netloc}"

    def write(self, name: str, data: bytes) -> None:
        """Upload in one request, which carries the sha256: the service compares it."""
        check_name(name)
        attributes = {"Content-Type": _TYPES[name.rpartition(".")[2]], "Cache-Control": _CACHE}
        with self._faults(f"image {name!r} could not be stored", may_be_missing=False):
            obstore.put(self._store, name, data, attributes=attributes, use_multipart=False)

    def read(self, name: str) -> bytes:
        """The image's bytes; FileNotFoundError when there is none."""
        check_name(name)
        with self._faults(f"image {name!r} could not be read"):
            return bytes(obstore.get(self._store, name).bytes())

    def copy(self, name: str, to: str) -> None:
        """Copy within the service: the bytes do not come here."""
        check_name(name)
        check_name(to)
        with self._faults(f"image {name!r} could not be copied"):
            obstore.copy(self._store, name, to)

    def delete(self, name: str) -> None:
        """Remove an image, if it is there."""
        check_name(name)
        with self._faults(f"image {name!r} could not be deleted", may_be_missing=False):
            obstore.delete(self._hasty, name)

    def exists(self, name: str) -> bool:
        """Whether there is such an image."""
        check_name(name)
        try:
            with self._faults(f"image {name!r} could not be looked for"):
                obstore.head(self._store, name)
        except FileNotFoundError:
            return False
        return True

    def files(self) -> Iterator[StoredFile]:
        """All images under the prefix, page by page."""
        with self._faults(f"{self._location} cannot be listed", may_be_missing=False):
            for page in obstore.list(self._store):
                for one in page:
                    if IMAGE_NAME.fullmatch(one["path"]):
                        written = one["last_modified"].timestamp()
                        yield StoredFile(one["path"], one["size"], written)

    def broken_off(self, before: float, *, remove: bool) -> int:
        """None: an object is there whole or not at all."""
        return 0

    def link(self, name: str, seconds: float) -> str | None:
        """A presigned URL: computed here, without asking the service."""
        check_name(name)
        if self._public is None:
            return None
        with self._faults(f"image {name!r} could not be linked to"):
            return obstore.sign(self._public, "GET", name, timedelta(seconds=seconds))

    def check(self) -> None:
        """Look into the bucket."""
        with self._faults(f"{self._location} cannot be used", may_be_missing=False):
            next(iter(obstore.list(self._hasty, chunk_size=1)), None)

    @contextmanager
    def _faults(self, what: str, *, may_be_missing: bool = True) -> Iterator[None]:
        """Turn obstore's errors into ours, without the dozens of lines they end with."""
        try:
            yield
        except (BaseError, FileNotFoundError) as fault:
            reason = str(fault).partition("\n")[0]
            missing = isinstance(fault, FileNotFoundError) and "NoSuchBucket" not in reason
            if missing and may_be_missing:
                raise
            raise StorageError(f"{what}: {reason}") from None
