"""Which addresses a webhook may call: no client reaches through us what it cannot reach itself.

Names are judged by what they resolve to at the moment of the call, and the call goes to the very
address that was judged, so that a name which changes its mind in between (DNS rebinding) gains
nothing.
"""

import asyncio
import ipaddress
import random
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

__all__ = ["Refused", "Targets"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Labels of 63 characters, 253 in all; one that ends in a number is an address, and this is none.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,254}}$)(?:{_LABEL}\.)*(?!\d+\.?$){_LABEL}\.?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # holds an IPv4 address in its last 32 bits


class Refused(ValueError):
    """This server does not call that address; says why."""


@dataclass(frozen=True)
class Targets:
    """The operator's exceptions to the rule that only public https addresses are called."""

    names: frozenset[str]
    networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]

    @classmethod
    def parse(cls, text: str) -> "Targets":
        """Read comma-separated host names, addresses and networks.

        Raises:
            ValueError: an entry looks like a network and is none.
        """
        names, networks = set(), []
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            try:
                networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
            except ValueError as fault:
                if "/" in entry or ":" in entry:
                    raise ValueError(f"webhook_allow: {entry!r} is no network: {fault}") from None
                names.add(entry.rstrip("."))
        return cls(frozenset(names), networks)

    def check_url(self, text: str) -> SplitResult:
        """Refuse a URL that can be judged without asking anyone.

        Raises:
            Refused: it is no http(s) URL, carries credentials, has a host that no name can be, is
                plain http to a host that is not listed, or names an address that is not public.
        """
        url = _split(text)
        host = url.hostname or ""
        address = _literal(host)
        if address is None and not _NAME.fullmatch(host):
            raise Refused(f"{host[:80]} is no host name")
        listed = host in self.names or (address is not None and self._lists(address))
        if url.scheme != "https" and not listed:
            raise Refused("The address should begin with https://")
        if address is not None and not listed and not _public(address):
            raise Refused(f"{host} is not a public address")
        return url

    async def resolve(self, url: SplitResult) -> str:
        """An address of the URL's host that may be called.

        Raises:
            Refused: one of its addresses is not public, and neither that nor the name is listed.
            OSError: the name does not resolve.
        """
        host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = sorted({str(entry[4][0]).partition("%")[0] for entry in found})
        for address in addresses:
            self._check(host, ipaddress.ip_address(address), plain=url.scheme != "https")
        return random.choice(addresses)  # noqa: S311 - any will do, and a retry may take another

    def _check(self, host: str, address: Address, *, plain: bool) -> None:
        if host in self.names or self._lists(address):
            return
        if plain:
            raise Refused("Only listed hosts are called without TLS")
        if not _public(address):
            raise Refused(f"{host} is {address}, which is not a public address")

    def _lists(self, address: Address) -> bool:
        plain = _unwrapped(address)
        return any(plain in network for network in self.networks)


def _split(text: str) -> SplitResult:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise Refused("The address should be ASCII without spaces; encode the rest with %")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as fault:
        raise Refused(f"The address is no URL: {fault}") from None
    if url.scheme not in ("https", "http") or not url.hostname or port == 0:
        raise Refused("The address should be a URL like https://example.com/hook")
    if url.username is not None or url.password is not None:
        raise Refused("The address should carry no user name or password")
    return url


def _literal(host: str) -> Address | None:
    """The address that a host is written as, in any of the forms that a resolver takes."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433
    except OSError:
        return None


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one, where there is one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or teredo or address


def _public(address: Address) -> bool:
    inner = _unwrapped(address)
    return inner.is_global and not inner.is_multicast and not getattr(inner, "is_site_local", False)
