"""What a registry says of itself, and the key of its libp2p host."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ncn_framework.errors import ConfigError, MalformedRequest
from ncn_framework.models import Record
from ncn_registry.identity import RegistryInfo, peer_key, registry_info_from_record, registry_record

OWNER = bytes(range(20))
GOOD = {"peer_id": "16Uiu2", "multiaddrs": ["/ip4/1.2.3.4/tcp/8828"], "grpc_addr": "r:50050", "software": "s"}


def test_a_record_says_what_went_in() -> None:
    info = RegistryInfo(OWNER, "16Uiu2", ("/ip4/1.2.3.4/tcp/8828",), "r:50050", "s")
    record = registry_record(info, 3, 4)
    assert (record.kind, record.sequence, record.expires_ms) == ("registry", 3, 4)
    assert registry_info_from_record(record) == info


@pytest.mark.parametrize(
    "changes",
    [
        {"peer_id": ""},
        {"peer_id": "x" * 257},
        {"peer_id": 1},
        {"multiaddrs": ["/ip4"] * 17},
        {"multiaddrs": ["x" * 257]},
        {"grpc_addr": "here"},
        {"crown": 1},
    ],
)
def test_what_is_no_registry_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedRequest, match="malformed"):
        registry_info_from_record(Record("registry", OWNER, 1, 2, msgspec.msgpack.encode(GOOD | changes)))
    with pytest.raises(MalformedRequest, match="not a registry's"):
        registry_info_from_record(Record("node", OWNER, 1, 2, msgspec.msgpack.encode(GOOD)))


def test_the_peers_key_is_made_once_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "registry-peer.key"
    key = peer_key(path)
    assert len(key) == 32
    assert peer_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("no key")
    with pytest.raises(ConfigError, match=r"registry-peer\.key"):
        peer_key(path)
