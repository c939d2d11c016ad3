"""A real S3 service on loopback: Ceph's radosgw over one monitor and one object store in memory.

On Debian: apt install radosgw ceph-mon ceph-osd ceph-common. It is up within some seconds.
"""

import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import obstore
from obstore.store import S3Store

from tests.integration.service import wait_until

_PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "monmaptool", "ceph")
MISSING = [program for program in _PROGRAMS if shutil.which(program) is None]
KEY, SECRET, BUCKET = "AVOCATKEY", "a secret of the test", "pictures"
_DEADLINE_S = 60.0

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon}
public addr = 127.0.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
paxos propose interval = 0.05
paxos min wait = 0.01
mon allow pool size one = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd class update on start = false
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 268435456
osd class load list = *
osd class default list = *
rgw frontends = beast endpoint=127.0.0.1:{rgw}
rgw run sync thread = false
rgw enable gc threads = false
rgw enable lc threads = false
rgw relaxed s3 bucket names = true
"""


class Rados:
    """The running service; `stop` and `start` play an outage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._configuration = folder / "ceph.conf"
        self._fsid = str(uuid.uuid4())
        self._mon, self._rgw = _free_port(), _free_port()
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.endpoint = f"http://127.0.0.1:{self._rgw}"

    def begin(self) -> None:
        """Make the cluster, a user and a bucket."""
        for part in ("mon", "osd", "rgw"):
            (self.folder / part).mkdir()
        text = _CONFIGURATION.format(
            folder=self.folder, fsid=self._fsid, mon=self._mon, rgw=self._rgw
        )
        self._configuration.write_text(text)
        map_file, osd = str(self.folder / "monmap"), str(uuid.uuid4())
        address = f"v1:127.0.0.1:{self._mon}"
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", self._fsid, map_file)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_file)
        self._daemon("ceph-mon", "-i", "a")
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._object_store = self._daemon("ceph-osd", "-i", "0")
        wait_until(self._has_object_store, _DEADLINE_S, "the object store's start")
        keys = ("--access-key", KEY, "--secret", SECRET)
        self._run("radosgw-admin", "user", "create", "--uid", "a", "--display-name", "a", *keys)
        self.start()
        made = httpx.put(obstore.sign(self.store(), "PUT", "", timedelta(seconds=60)))
        made.raise_for_status()

    def start(self) -> None:
        """Start the gateway, and wait until it answers."""
        self._gateway = self._daemon("radosgw", "-n", "client.rgw")
        wait_until(lambda: _answers(self.endpoint), _DEADLINE_S, "an answer of radosgw")

    def stop(self) -> None:
        """End the gateway; what is stored stays."""
        _end(self._gateway)
        self._daemons.remove(self._gateway)

    def end(self) -> None:
        """End all."""
        for daemon in reversed(self._daemons):
            _end(daemon)

    def store(self) -> S3Store:
        """The bucket, by obstore alone."""
        return S3Store(
            BUCKET,
            config={"endpoint": self.endpoint, "access_key_id": KEY, "secret_access_key": SECRET},
            client_options={"allow_http": True},
        )

    def names(self) -> list[str]:
        """Everything in the bucket."""
        return sorted(one["path"] for batch in obstore.list(self.store()) for one in batch)

    def settings(self, **more: str) -> dict[str, str]:
        """Settings by which Avocat uses the bucket."""
        return {
            "storage": f"s3://{BUCKET}/avocat",
            "s3_endpoint": self.endpoint,
            "s3_access_key_id": KEY,
            "s3_secret_access_key": SECRET,
        } | more

    def _has_object_store(self) -> bool:
        if self._object_store.poll() is not None:  # now and then it asks the monitor too early
            self._daemons.remove(self._object_store)
            self._object_store = self._daemon("ceph-osd", "-i", "0")
        return "booting -> active" in (self.folder / "osd.0.log").read_text()

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, "-c", str(self._configuration), *arguments]
        ended = subprocess.run(command, capture_output=True, timeout=_DEADLINE_S, check=False)
        if ended.returncode:
            raise RuntimeError(f"{command} failed: {ended.stderr.decode(errors='replace')}")

    def _daemon(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.out").open("ab") as out:
            daemon = subprocess.Popen(
                [program, "-c", self._configuration, "-f", *arguments], stdout=out, stderr=out
            )
        self._daemons.append(daemon)
        return daemon


@contextmanager
def running() -> Iterator[Rados]:
    """A service with an empty bucket."""
    with tempfile.TemporaryDirectory(prefix="avocat-rados-") as folder:
        rados = Rados(Path(folder))
        try:
            rados.begin()
            yield rados
        finally:
            rados.end()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
