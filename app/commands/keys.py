"""`avocat keys`: make, list and revoke API keys."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from pydantic import ValidationError
from redis.exceptions import RedisError, ResponseError

from app.api_keys import ALL_DAY_S, KeyStore, Limits, Scope, StoredKey, new_key
from app.audit import Audit, AuditError, open_audit
from app.commands.asking import AsJson
from app.commands.console import ExitCode, fail, read_settings
from app.jobs.connection import connect

__all__ = ["keys"]

keys = typer.Typer(
    name="keys",
    help="""Make, list and revoke API keys; the service must be running, for they are in its Redis.

    From the first key on the service needs one. With AVOCAT_REQUIRE_KEYS=true it does before.
    Keys of AVOCAT_API_KEYS are others: they are not listed here.

    \b
    Exit codes: 0 done, 2 wrong input or no such key, 3 no Redis there.
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)

MOST_DAYS = 36_500
MOST = 10**9  # beyond 2**53 Redis no longer counts exactly
_ROW = "{:<8}  {:<20}  {:<20}  {:<22}  {:<8}  {:<16}  {:<16}  {}"


@keys.command(short_help="Make a key.")
def create(
    name: Annotated[str, typer.Argument(help="What the key is called: who or what has it.")],
    owner: Annotated[
        str | None, typer.Option(help="Whom its jobs belong to; keys of one owner share them.")
    ] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; submit and read if absent.")
    ] = None,
    per_minute: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Submissions in any 60 s.")
    ] = None,
    active: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Jobs of its owner queued or running.")
    ] = None,
    per_day: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Pictures asked for in a day (UTC).")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0, max=MOST_DAYS, help="Days until it expires.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, and print its secret: the only time that it can be seen.

    To replace a key, make another one for the same owner, and revoke the old one once nobody
    uses it any more.

    \b
    Examples:
      avocat keys create shop --per-day 500
      avocat keys create shop-2027 --owner shop --days 365
      avocat keys create ops --scope read --scope admin
    """
    limits = Limits(per_minute=per_minute, active=active, per_day=per_day)
    lasts_s = None if days is None else days * ALL_DAY_S
    try:
        key, secret = new_key(
            name,
            owner=owner,
            scopes=scope or (Scope.SUBMIT, Scope.READ),
            limits=limits,
            lasts_s=lasts_s,
        )
    except ValidationError:
        fail(
            "a name or owner is letters, digits and . _ @ -, 64 at most, and begins with a letter "
            "or digit",
            ExitCode.BAD_INPUT,
        )
    with _audit_log() as audit, _store() as store:
        if any(known.name == name and known.is_valid(time.time()) for known, _ in store.all()):
            fail(f"there is a key {name!r} already; choose another name", ExitCode.BAD_INPUT)
        store.add(key)
        _note(audit, "create key", key)
    if as_json:
        typer.echo(json.dumps(_object(key, None) | {"secret": secret}))
        return
    typer.echo(secret)
    typer.echo(f"That is the secret of {key.name!r}: it is not kept, so note it now.", err=True)


@keys.command("list", short_help="All keys.")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys, revoked ones too, and when each was last used."""
    with _store() as store:
        found = store.all()
    if as_json:
        for key, used_at in found:
            typer.echo(json.dumps(_object(key, used_at)))
        return
    if not found:
        typer.echo("There are no keys yet: `avocat keys create NAME` makes one.", err=True)
        return
    typer.echo(
        _ROW.format("ID", "NAME", "OWNER", "SCOPES", "STATE", "CREATED", "LAST USED", "LIMITS")
    )
    for key, used_at in found:
        limits = key.limits.model_dump(exclude_none=True)
        told = [f"{what.replace('_', ' ')} {count}" for what, count in limits.items()]
        if key.expires_at is not None:
            told.append(f"until {_date(key.expires_at)}")
        typer.echo(
            _ROW.format(
                *(key.id, key.name, key.owner, ",".join(key.scopes), _state(key)),
                *(_date(key.created_at), _date(used_at), ", ".join(told)),
            ).rstrip()
        )


@keys.command(short_help="Let a key open nothing any more.")
def revoke(
    key: Annotated[str, typer.Argument(help="Its name, its id, or the begin of its secret.")],
) -> None:
    """Revoke a key: all API processes refuse it within seconds. Its jobs stay its owner's."""
    wanted = key.removeprefix("avocat_").partition("_")[0] if key.startswith("avocat_") else key
    with _audit_log() as audit, _store() as store:
        live = [one for one, _ in store.all() if one.revoked_at is None]
        found = [one for one in live if wanted in (one.id, one.name)]
        if not found:
            fail(
                f"there is no key {wanted[:64]!r} to revoke; `avocat keys list` shows all",
                ExitCode.BAD_INPUT,
            )
        for one in found:
            store.revoke(one)
            _note(audit, "revoke key", one)
            typer.echo(f"Revoked {one.name!r} ({one.prefix}).")


@contextmanager
def _store() -> Iterator[KeyStore]:
    settings = read_settings()
    try:
        with connect(settings.resolved_redis_url) as redis:
            yield KeyStore(redis)
    except ResponseError as fault:  # its memory is full, it is a replica, or the user may not
        fail(f"Redis refuses it: {fault}", ExitCode.UNREACHABLE)
    except (RedisError, OSError, ValueError) as fault:
        fail(
            f"Redis does not answer ({type(fault).__name__}): is the service running?",
            ExitCode.UNREACHABLE,
        )


@contextmanager
def _audit_log() -> Iterator[Audit]:
    """To be opened before anything is changed: what cannot be noted is not done."""
    try:
        audit = open_audit(read_settings())
    except AuditError as fault:
        fail(f"AVOCAT_AUDIT_LOG: {fault}", ExitCode.BAD_INPUT)
    try:
        yield audit
    finally:
        audit.close()


def _note(audit: Audit, action: str, key: StoredKey) -> None:
    audit.note({"action": action, "owner": key.owner, "key": key.id, "name": key.name})


def _state(key: StoredKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "valid" if key.is_valid(time.time()) else "expired"


def _date(when: float | None) -> str:
    return "never" if when is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))


def _object(key: StoredKey, used_at: float | None) -> dict[str, object]:
    shown = key.model_dump(mode="json", exclude={"sha256"})
    return shown | {"prefix": key.prefix, "state": _state(key), "last_used_at": used_at}
