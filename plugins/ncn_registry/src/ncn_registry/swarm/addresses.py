"""Multiaddrs: parsed with errors that say what is wrong, checked for a free port, expanded where they are wildcards."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import trio
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from .errors import SwarmError

__all__ = ["Multiaddr", "advertised", "check_free", "parse_listen", "parse_peer", "resolved"]

_FAMILIES = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}
_NAMED = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}
_MOST_OF_A_NAME = 8
_WILDCARDS = ("/ip4/0.0.0.0/", "/ip6/::/")


def _parse(address: str) -> Multiaddr:
    try:
        return Multiaddr(address)
    except Exception as error:  # multiaddr raises classes of its own, ValueError and others
        raise SwarmError(f"{address!r} is no multiaddr, such as /ip4/127.0.0.1/tcp/8828: {error}") from error


def parse_listen(addresses: Sequence[str]) -> list[Multiaddr]:
    """Read addresses to listen on: an IP address and a TCP port each.

    Raises:
        SwarmError: there is none, or one is not of that form.
    """
    if not addresses:
        raise SwarmError("no address to listen on; give one, such as /ip4/127.0.0.1/tcp/8828")
    parsed = [_parse(address) for address in addresses]
    for address in parsed:
        names = [protocol.name for protocol in address.protocols()]
        if len(names) != 2 or names[0] not in _FAMILIES or names[1] != "tcp":
            raise SwarmError(f"cannot listen on {address}: use /ip4/ADDRESS/tcp/PORT or /ip6/ADDRESS/tcp/PORT")
    return parsed


def parse_peer(address: str) -> PeerInfo:
    """Read a peer's address, which ends in ``/p2p/`` and its peer id.

    Raises:
        SwarmError: it is not of that form.
    """
    try:
        return info_from_p2p_addr(_parse(address))
    except SwarmError:
        raise
    except Exception as error:  # InvalidAddrError, or whatever a bad peer id raises
        raise SwarmError(
            f"{address} names no peer; append /p2p/ and its peer id, as `ncn registry peers` prints it"
        ) from error


async def resolved(address: Multiaddr) -> list[Multiaddr]:
    """Return the addresses that can be dialled for one: the library knows IP addresses alone.

    Args:
        address: ``/dns/``, ``/dns4/`` or ``/dns6/`` and a name, as multiaddr's table of protocols has them; anything
            else is returned as it is.

    Raises:
        OSError: the name is unknown.
    """
    (kind, name), *rest = ((p.name, address.value_for_protocol(p.code)) for p in address.protocols())
    if kind not in _NAMED:
        return [address]
    behind = "".join(f"/{protocol}/{value}" for protocol, value in rest)
    found = await trio.socket.getaddrinfo(name, None, family=_NAMED[kind], type=socket.SOCK_STREAM)
    hosts = dict.fromkeys((family, str(where[0])) for family, _, _, _, where in found)
    names = {number: protocol for protocol, number in _FAMILIES.items()}
    return [Multiaddr(f"/{names[family]}/{host}{behind}") for family, host in list(hosts)[:_MOST_OF_A_NAME]]


def check_free(address: Multiaddr) -> None:
    """Refuse a port that somebody listens on: the library shares it silently (SO_REUSEPORT).

    Raises:
        SwarmError: the port is taken, or not ours to take.
    """
    family = next(protocol.name for protocol in address.protocols())
    host, port = str(address.value_for_protocol(family)), int(address.value_for_protocol("tcp") or 0)
    with socket.socket(_FAMILIES[family], socket.SOCK_STREAM) as probe:
        # As the library does, so that connections which linger don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == "ip6":
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SwarmError(
                f"cannot listen on {address}: {error.strerror or error}; choose another with --p2p-listen-addr"
            ) from error


def advertised(listening: Sequence[Multiaddr]) -> list[Multiaddr]:
    """Return what peers may dial: 0.0.0.0 and :: stand for every interface, and nobody can dial them."""
    found: list[Multiaddr] = []
    for address in listening:
        wild = str(address).startswith(_WILDCARDS)
        found.extend(expand_wildcard_address(address) if wild else [address])
    return [address for address in dict.fromkeys(found) if not str(address).startswith(_WILDCARDS)]
