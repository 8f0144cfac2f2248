"""What a validator says of itself, from anybody: taken when it is well formed, and refused when not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ncn_framework.errors import MalformedRequest
from ncn_framework.lifecycle import now_ms
from ncn_registry.records import Judge, dht_key
from ncn_registry.sealing import sealed
from ncn_registry.validators import VALIDATOR, ValidatorInfo, validator_info_from_record, validator_record

from .committee import VALIDATORS
from .network import DOMAIN, a_record

INFO = ValidatorInfo(VALIDATORS[0].address, b"\x07" * 20, "16Uiu2", ("/ip4/192.0.2.1/tcp/8828/p2p/16Uiu2",))


def test_a_record_says_what_was_put_in_and_counts() -> None:
    record = sealed(validator_record(INFO, 5, now_ms() + 1_000), VALIDATORS[0], DOMAIN)
    assert validator_info_from_record(record) == INFO
    Judge(DOMAIN, now_ms).check(record)
    assert len(dht_key(VALIDATOR, record.owner)) <= 49


@pytest.mark.parametrize(
    "changes",
    [
        {"registry": b"\x07" * 19},
        {"peer_id": ""},
        {"peer_id": "x" * 257},
        {"multiaddrs": ("/ip4/192.0.2.1/tcp/1",) * 17},
        {"multiaddrs": ("",)},
        {"multiaddrs": ("x" * 257,)},
    ],
)
def test_what_passes_a_bound_is_refused(changes: dict[str, object]) -> None:
    record = validator_record(replace(INFO, **changes), 5, now_ms() + 1_000)  # type: ignore[arg-type]
    with pytest.raises(MalformedRequest, match="validator 0x"):
        validator_info_from_record(record)


def test_garbage_and_other_kinds_are_refused() -> None:
    record = validator_record(INFO, 5, now_ms() + 1_000)
    for payload in (b"", b"\xff", b"\x80", record.payload + b"x"):
        with pytest.raises(MalformedRequest):
            validator_info_from_record(replace(record, payload=payload))
    with pytest.raises(MalformedRequest, match="is not a validator's"):
        validator_info_from_record(a_record())
