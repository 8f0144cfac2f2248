"""What validators remember of their signatures, on disk and between processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ncn_framework.errors import EndorsementRefused, StoreError
from ncn_payments.validator_memory import ValidatorMemory

GATEWAY, OTHER = b"\x01" * 20, b"\x02" * 20
FIRST, SECOND = b"\x0a" * 32, b"\x0b" * 32
R1, R2, R3 = (bytes([n]) * 32 for n in (1, 2, 3))
ESCROW = b"\x0e" * 32


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[ValidatorMemory]:
    made = ValidatorMemory(tmp_path / "home" / "validators.db")
    yield made
    made.close()


def sign(memory: ValidatorMemory, nonce: int, digest: bytes, *receipts: bytes, gateway: bytes = GATEWAY) -> None:
    memory.sign_batch(gateway, nonce, digest, receipts, memory.batches_of(receipts))


def test_every_batch_of_a_receipt_is_remembered(memory: ValidatorMemory) -> None:
    assert memory.batches_of((R1, R2)) == {}
    sign(memory, 1, FIRST, R1, R2)
    sign(memory, 4, SECOND, R2, R3)
    assert memory.batches_of((R1, R2, R3)) == {
        R1: {(GATEWAY, 1)},
        R2: {(GATEWAY, 1), (GATEWAY, 4)},
        R3: {(GATEWAY, 4)},
    }


def test_the_same_batch_again_changes_nothing(memory: ValidatorMemory) -> None:
    for _ in range(2):
        sign(memory, 1, FIRST, R1)
    assert memory.batches_of((R1,)) == {R1: {(GATEWAY, 1)}}
    assert memory.next_nonce(GATEWAY) == 2


def test_another_batch_under_a_nonce_is_refused_and_leaves_nothing(memory: ValidatorMemory) -> None:
    sign(memory, 1, FIRST, R1)
    sign(memory, 9, FIRST, R1)
    with pytest.raises(EndorsementRefused, match="under nonce 1; use 10") as refused:
        sign(memory, 1, SECOND, R2)
    assert refused.value.next_nonce == 10
    assert memory.batches_of((R2,)) == {}
    sign(memory, 1, SECOND, R2, gateway=OTHER)
    assert memory.next_nonce(OTHER) == 2


def test_what_was_signed_since_it_was_looked_at_is_noticed(memory: ValidatorMemory, tmp_path: Path) -> None:
    """By another process with the same validators: a command beside the gateway."""
    known = memory.batches_of((R1, R2))
    beside = ValidatorMemory(tmp_path / "home" / "validators.db")
    sign(beside, 1, FIRST, R2)
    with pytest.raises(EndorsementRefused, match="meanwhile; ask again"):
        memory.sign_batch(GATEWAY, 2, SECOND, (R1, R2), known)
    assert memory.next_nonce(GATEWAY) == 2  # nothing of it is kept
    memory.sign_batch(GATEWAY, 2, SECOND, (R1, R2), memory.batches_of((R1, R2)))
    assert beside.batches_of((R2,)) == {R2: {(GATEWAY, 1), (GATEWAY, 2)}}
    beside.close()


def test_an_escrow_ends_one_way(memory: ValidatorMemory) -> None:
    memory.sign_escrow(ESCROW, "done", FIRST, "failed")
    memory.sign_escrow(ESCROW, "done", FIRST, "failed")
    with pytest.raises(EndorsementRefused, match="done"):
        memory.sign_escrow(ESCROW, "done", SECOND, "failed")
    with pytest.raises(EndorsementRefused, match="done, failed"):
        memory.sign_escrow(ESCROW, "failed", SECOND, "done")
    memory.sign_escrow(R1, "failed", SECOND, "done")


def test_what_was_called_wrong_is_known(memory: ValidatorMemory) -> None:
    assert memory.wrong_receipts((R1, R2)) == {}
    for receipt in (FIRST, SECOND, FIRST):
        memory.sign_verdict(R1, receipt)
    assert memory.wrong_receipts((R1, R2)) == {R1: {FIRST, SECOND}}


def test_a_record_begins_with_its_fee_and_grows(memory: ValidatorMemory) -> None:
    with pytest.raises(EndorsementRefused, match="name the transaction that has paid its fee"):
        memory.sign_record("subnet", GATEWAY, 1, FIRST, b"")
    for _ in range(2):
        memory.sign_record("subnet", GATEWAY, 2**64 - 1, FIRST, R1)
        memory.sign_record("subnet", GATEWAY, 2**64 - 1, FIRST, b"")
    for sequence, digest in ((2**64 - 1, SECOND), (7, FIRST)):
        with pytest.raises(EndorsementRefused, match=f"version {2**64 - 1} of this subnet was signed already"):
            memory.sign_record("subnet", GATEWAY, sequence, digest, R1)
    memory.sign_record("subnet", GATEWAY, 2**64, SECOND, b"")


def test_a_fee_is_used_for_one_record(memory: ValidatorMemory) -> None:
    memory.sign_record("subnet", GATEWAY, 1, FIRST, R1)
    for kind, owner in (("subnet", ESCROW[:20]), ("other", GATEWAY)):
        with pytest.raises(EndorsementRefused, match="has paid for another record"):
            memory.sign_record(kind, owner, 1, FIRST, R1)
    with pytest.raises(EndorsementRefused):  # and is not used up by a version that was refused
        memory.sign_record("subnet", GATEWAY, 1, SECOND, R2)
    memory.sign_record("subnet", ESCROW[:20], 1, FIRST, R2)


def test_it_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "validators.db"
    first = ValidatorMemory(path)
    sign(first, 7, FIRST, R1)
    first.sign_escrow(ESCROW, "failed", FIRST, "done")
    first.sign_verdict(R2, FIRST)
    first.sign_record("subnet", GATEWAY, 2, FIRST, R1)
    first.close()
    second = ValidatorMemory(path)
    assert second.batches_of((R1,)) == {R1: {(GATEWAY, 7)}}
    with pytest.raises(EndorsementRefused):
        sign(second, 7, SECOND, R1)
    with pytest.raises(EndorsementRefused):
        second.sign_escrow(ESCROW, "done", SECOND, "failed")
    assert second.wrong_receipts((R2,)) == {R2: {FIRST}}
    with pytest.raises(EndorsementRefused):
        second.sign_record("subnet", GATEWAY, 1, FIRST, R1)
    second.close()


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "validators.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"the validators' memory .* cannot be opened"):
        ValidatorMemory(path)
    with pytest.raises(StoreError):
        ValidatorMemory(tmp_path)
