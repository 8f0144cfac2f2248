"""Records on disk: durable, bounded, remembered for as long as an older one could be brought back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ncn_framework.errors import NoCapacity, StoreError
from ncn_framework.models import Domain
from ncn_registry.store import RecordStore

from .network import DOMAIN, NODE, OTHER, a_record


async def test_a_record_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    async with RecordStore(path, DOMAIN, 0) as store:
        await store.put(a_record(sequence=1, expires_ms=100), direct=True)
        await store.put(a_record(sequence=2, expires_ms=90), direct=False)
        await store.put(a_record(OTHER, expires_ms=50), direct=True)
    async with RecordStore(path, DOMAIN, 60) as store:
        kept = store.get("node", NODE.address)
        assert kept is not None
        assert (kept.record.sequence, kept.keep_until_ms, kept.direct) == (2, 100, False)
        assert store.get("node", OTHER.address) is None
        assert store.of(NODE.address) == store.all() == [kept]


async def test_records_for_another_contract_are_forgotten(tmp_path: Path) -> None:
    async with RecordStore(tmp_path / "registry.db", DOMAIN, 0) as store:
        await store.put(a_record(), direct=True)
    async with RecordStore(tmp_path / "registry.db", Domain(5), 0) as store:
        assert len(store) == 0


async def test_what_expires_is_told_once_and_remembered_while_an_older_one_lives(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    async with RecordStore(path, DOMAIN, 0) as store:
        await store.put(a_record(sequence=1, expires_ms=100), direct=True)
        await store.put(a_record(sequence=2, expires_ms=50), direct=True)
        assert store.sweep(49) == ([], [])
        expired, forgotten = store.sweep(50)
        assert [record.sequence for record in expired] == [2]
        assert forgotten == []
        assert store.sweep(99) == ([], [])
        assert store.get("node", NODE.address) is not None, "or else the older one could be brought back"
        assert store.sweep(100) == ([], [NODE.address])
        assert store.get("node", NODE.address) is None
    async with RecordStore(path, DOMAIN, 0) as store:
        assert len(store) == 0


async def test_a_newer_record_moves_the_expiry(tmp_path: Path) -> None:
    async with RecordStore(tmp_path / "registry.db", DOMAIN, 0) as store:
        await store.put(a_record(sequence=1, expires_ms=50), direct=True)
        await store.put(a_record(sequence=2, expires_ms=100), direct=True)
        assert store.sweep(60) == ([], [])
        expired, forgotten = store.sweep(100)
        assert [record.sequence for record in expired] == [2]
        assert forgotten == [NODE.address]
        assert len(store) == 0


async def test_records_are_bounded_in_number_and_bytes(tmp_path: Path) -> None:
    record = a_record()
    async with RecordStore(tmp_path / "one.db", DOMAIN, 0, max_records=1) as store:
        await store.put(record, direct=True)
        await store.put(replace(record, sequence=2), direct=True)
        with pytest.raises(NoCapacity, match="1 records"):
            store.put(a_record(OTHER), direct=True)
    async with RecordStore(tmp_path / "two.db", DOMAIN, 0, max_bytes=len(record.payload)) as store:
        await store.put(record, direct=True)
        with pytest.raises(NoCapacity, match="bytes"):
            store.put(a_record(OTHER), direct=True)
        await store.put(replace(record, sequence=2, payload=b""), direct=True)
        await store.put(a_record(OTHER), direct=True)


async def test_a_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"registry\.db"):
        async with RecordStore(path, DOMAIN, 0):
            pass
