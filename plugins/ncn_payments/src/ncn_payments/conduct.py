"""What validators say about others' conduct, and about records: what can be checked of it without executing anything.

A node's wrong result, what validators did in an epoch, and the configuration of a subnet. Whether a result is wrong,
and whether performances and configurations are as they should be, other plugins of a registry say (``ncn_inspect``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ncn_framework import digests
from ncn_framework.errors import EndorsementRefused
from ncn_framework.models import Domain
from ncn_framework.signing import address_hex, check_signature
from ncn_framework.statements import Evidence, PerformancesStatement, SubnetStatement, VerdictStatement

__all__ = ["check_performances", "check_subnet", "check_verdict"]

_SUBNET = "subnet"


def check_verdict(
    domain: Domain, statement: VerdictStatement, disputes: bytes, evidence: Mapping[bytes, Evidence]
) -> None:
    """Refuse a verdict that nobody could check, or that the contract would not take.

    Args:
        domain: of InferencePayment, for which the node signed its receipt.
        statement: from anybody.
        disputes: address of this network's DisputeManager.
        evidence: by request id.

    Raises:
        EndorsementRefused: it is another contract's, or the answer is not shown (``wanted``).
        SignatureRejected: the node did not sign the receipt.
    """
    _check_contract(statement, disputes)
    receipt = statement.receipt.receipt
    shown = evidence.get(receipt.request_id)
    if shown is None:
        raise EndorsementRefused("a verdict is signed for an answer that is shown", wanted=[receipt.request_id])
    if shown.receipt.receipt != receipt or shown.request.request_id != receipt.request_id:
        raise EndorsementRefused(f"what is shown of request 0x{receipt.request_id.hex()} is of another receipt")
    signature = statement.receipt.signature_of(receipt.node)
    check_signature(digests.receipt_digest(domain, receipt), signature, receipt.node, "the receipt")


def check_performances(statement: PerformancesStatement, disputes: bytes, members: Collection[bytes]) -> None:
    """Refuse performances that the contract would not take.

    Args:
        statement: from anybody.
        disputes: address of this network's DisputeManager.
        members: of the epoch that is judged.

    Raises:
        EndorsementRefused: naming what is wrong.
    """
    _check_contract(statement, disputes)
    validators = [one.validator for one in statement.performances]
    if not validators or validators != sorted(set(validators)):
        raise EndorsementRefused("performances name each validator once, in ascending order of address; there is one")
    if strangers := [validator for validator in validators if validator not in members]:
        raise EndorsementRefused(f"{address_hex(strangers[0])} was no validator of epoch {statement.period}")


def check_subnet(domain: Domain, statement: SubnetStatement, now_ms: int) -> None:
    """Refuse a record that is no subnet's, has expired, or is not its owner's.

    Raises:
        EndorsementRefused, SignatureRejected: naming what is wrong.
    """
    record = statement.record
    if record.kind != _SUBNET:
        raise EndorsementRefused(f"validators sign records of kind {_SUBNET!r}; this one is of kind {record.kind!r}")
    if record.expires_ms <= now_ms:
        raise EndorsementRefused(f"the subnet's record expired at {record.expires_ms} ms")
    check_signature(digests.record_digest(domain, record), record.signature, record.owner, "the subnet's record")


def _check_contract(statement: VerdictStatement | PerformancesStatement, disputes: bytes) -> None:
    if statement.contract != disputes:
        raise EndorsementRefused(
            f"the statement is for the contract {address_hex(statement.contract)}; this network's DisputeManager is "
            f"{address_hex(disputes)}"
        )
