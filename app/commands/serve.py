"""`avocat serve`: the whole service on one machine; `avocat api`, `avocat worker`: one part."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Annotated

import typer

from app import logs
from app.commands.console import ExitCode, apply_overrides, fail, read_settings
from app.commands.preflight import (
    check_bundle,
    check_redis,
    check_storage,
    listen,
    lock_data_folder,
    take_address,
)
from app.commands.programs import environment, program
from app.embedded_redis import EmbeddedRedis, EmbeddedRedisError, redis_executable
from app.settings import Settings
from app.storage.base import StorageError
from app.supervisor import Part, ProcessPart, RedisPart, Supervisor, SupervisorError

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[
    int | None,
    typer.Option(
        min=0, max=65535, help="Port to listen on; 0 takes a free one.", show_default="8000"
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder for jobs and images.", show_default="data")
]
Bundle = Annotated[
    Path | None, typer.Option(help="Folder of the model.", show_default="the bundled one")
]
Preset = Annotated[
    str | None,
    typer.Option(help="turbo: the model NAME-turbo, of few steps.", show_default="none"),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="cuda if there is one")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="Workers, dealt the devices by turns.", show_default="1"),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="The ready message as one JSON line.")]


def serve(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    bundle: Bundle = None,
    preset: Preset = None,
    device: Device = None,
    workers: Workers = None,
    as_json: JsonFlag = False,
) -> None:
    """Start Redis, the API and the workers, and keep them running until Ctrl-C.

    Options override the AVOCAT_* settings (`avocat settings` lists them). With AVOCAT_REDIS_URL
    set, that Redis is used instead of one of our own. Jobs and images stay in the data folder.
    Models of `avocat import` are loaded when jobs ask for them.

    \b
    Examples:
      avocat serve
      avocat serve --port 8080 --data-dir /srv/avocat
      avocat serve --workers 4 --device cuda:0,cuda:1
      AVOCAT_HOST=0.0.0.0 AVOCAT_API_KEYS=me:secret avocat serve
    """
    apply_overrides(
        host=host, port=port, data_dir=data_dir, bundle=bundle, preset=preset, device=device
    )
    apply_overrides(workers=workers)
    settings = read_settings()
    logs.configure(settings.log_level, settings.log_json)
    check_bundle(settings.bundle)
    lock = lock_data_folder(settings.data_dir)
    check_storage(settings)
    listener = listen(settings)
    address, bound_port = reachable(listener)
    url = f"http://[{address}]:{bound_port}" if ":" in address else f"http://{address}:{bound_port}"
    if not as_json:
        typer.echo(f"Starting Avocat in {settings.data_dir.resolve()} …", err=True)
    try:
        found = parts(settings, listener, lock)
        Supervisor(found, address, bound_port, on_ready=lambda: announce(url, as_json)).run()
    except (SupervisorError, EmbeddedRedisError) as fault:
        fail(str(fault))
    finally:
        listener.close()
        os.close(lock)


def reachable(listener: socket.socket) -> tuple[str, int]:
    """Address and port by which this machine reaches the listener."""
    address, port = listener.getsockname()[:2]
    return ANY_ADDRESS.get(address, address), int(port)


def announce(url: str, as_json: bool) -> None:
    """Say that the service is up: for people, or as one JSON line for scripts."""
    if as_json:
        print(json.dumps({"event": "ready", "url": url, "pid": os.getpid()}), flush=True)
    else:
        print(f"Avocat is ready: {url}   (API pages: {url}/docs, stop: Ctrl-C)", flush=True)


def parts(settings: Settings, listener: socket.socket, lock: int) -> list[Part]:
    """The parts in starting order; Redis among them unless the settings name one."""
    variables = environment()
    shared = fresh_folder(settings.data_dir / "metrics")
    variables["PROMETHEUS_MULTIPROC_DIR"] = str(
        shared
    )  # the API's /metrics tells of the worker, too
    found: list[Part] = []
    if settings.redis_url is None:
        redis_executable()
        server = EmbeddedRedis(settings.data_dir / "redis")
        variables["AVOCAT_REDIS_URL"] = server.url
        found.append(RedisPart(server, lock))
    else:
        check_redis(settings.redis_url)
    fd = listener.fileno()
    api_argv = program("app.cli", "api", "--fd", str(fd))
    found.append(ProcessPart("api", api_argv, variables, grace_s=15.0, inherit=[fd]))
    return [*found, *worker_parts(settings, variables)]


def worker_parts(settings: Settings, variables: dict[str, str]) -> list[Part]:
    """All workers; each knows its turn, and picks device and threads by that."""
    drain_s = settings.drain_grace_s + 10.0
    found: list[Part] = []
    for turn in range(settings.workers):
        share = ["--share", f"{turn}/{settings.workers}"] if settings.workers > 1 else []
        port = settings.worker_metrics_port
        own = {} if port is None else {"AVOCAT_WORKER_METRICS_PORT": str(port + turn)}
        name = f"worker {turn + 1}" if share else "worker"
        argv = program("worker", *share)
        found.append(ProcessPart(name, argv, variables | own, grace_s=drain_s))
    return found


def fresh_folder(path: Path) -> Path:
    """The folder, with nothing in it of an earlier run."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path.resolve()


def api(
    host: Host = None,
    port: Port = None,
    fd: Annotated[int | None, typer.Option(hidden=True, help="An inherited listener.")] = None,
) -> None:
    """Run the API alone, against the Redis of AVOCAT_REDIS_URL.

    It keeps no state: any number may run behind a gateway.

    \b
    Example:
      AVOCAT_REDIS_URL=redis://redis:6379/0 AVOCAT_API_KEYS=me:secret avocat api --host 0.0.0.0
    """
    apply_overrides(host=host, port=port)
    settings = read_settings()
    listener = socket.socket(fileno=fd) if fd is not None else take_address(settings)
    # Here, so that the other commands start faster.
    from app.audit import AuditError
    from app.main import create_app
    from app.policy.blocklist import PolicyError
    from app.server import Server, allow_many_connections, collect_seldom

    logs.configure(settings.log_level, settings.log_json)
    allow_many_connections()
    try:
        app = create_app(settings)
    except StorageError as fault:
        fail(str(fault))
    except PolicyError as fault:
        fail(f"AVOCAT_BLOCKLIST: {fault}", ExitCode.BAD_INPUT)
    except AuditError as fault:
        fail(f"AVOCAT_AUDIT_LOG: {fault}", ExitCode.BAD_INPUT)
    except ValueError as wrong:
        fail(f"AVOCAT_REDIS_URL is not a Redis address: {wrong}", ExitCode.BAD_INPUT)
    collect_seldom()
    # Of one machine's service all parts end together: nobody is waited for.
    grace_s = 0.0 if fd is not None else float(settings.drain_grace_s)
    Server(app, delay_s=settings.drain_delay_s, grace_s=grace_s).run(sockets=[listener])


def worker(
    device: Device = None,
    bundle: Bundle = None,
    preset: Preset = None,
    name: Annotated[
        str | None, typer.Option(help="Name in `rq info`; a drawn one if absent.")
    ] = None,
    burst: Annotated[bool, typer.Option(help="End when the queues are empty.")] = False,
    profile: Annotated[
        Path | None, typer.Option(help="Write a trace that ui.perfetto.dev opens.")
    ] = None,
) -> None:
    """Run one worker alone, against the Redis of AVOCAT_REDIS_URL: one per device.

    Example: AVOCAT_REDIS_URL=redis://redis:6379/0 avocat worker --device cuda:1
    """
    apply_overrides(device=device, bundle=bundle, preset=preset)
    read_settings()
    named = ["--name", name] if name is not None else []
    named += ["--profile", str(profile)] if profile is not None else []
    argv = program("worker", *named, *(["--burst"] if burst else []))
    os.execve(argv[0], argv, environment())  # noqa: S606 - our own program, no shell
