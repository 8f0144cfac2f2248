"""What a gateway is told when too few sign: a few liars can neither write its requests off nor use its nonces up."""

from __future__ import annotations

from ncn_framework.errors import EndorsementRefused, NcnError
from ncn_registry.refusals import merged

from .committee import VALIDATORS

ONE, TWO = b"\1" * 32, b"\2" * 32


def told(*errors: NcnError, signed: int = 0) -> EndorsementRefused:
    """Return what is told of five validators, of whom three must sign, where some gave these errors."""
    reasons = {signer.address: error for signer, error in zip(VALIDATORS, errors, strict=False)}
    return merged(reasons, signed, 3, 5, 7, frozenset())


def test_what_one_or_two_say_alone_writes_nothing_off() -> None:
    lie = EndorsementRefused("settled", {ONE: 5}, invalid={TWO})
    assert (told(lie, signed=2).settled, told(lie, signed=2).invalid) == ({}, frozenset())
    assert (told(lie, lie, signed=2).settled, told(lie, lie).invalid) == ({}, frozenset())


def test_what_three_say_no_quorum_can_do_without() -> None:
    true = EndorsementRefused("settled", {ONE: 5}, invalid={TWO})
    other = EndorsementRefused("settled", {ONE: 6, TWO: 1})
    refusal = told(true, true, other)
    assert (refusal.settled, refusal.invalid) == ({ONE: 6}, frozenset())
    assert told(true, true, true).invalid == {TWO}


def test_the_next_nonce_is_the_lowest_that_a_quorum_would_take() -> None:
    def nonce(*wanted: int, signed: int = 0) -> int:
        return told(*(EndorsementRefused("nonce", None, one) for one in wanted), signed=signed).next_nonce

    assert nonce(6, 6, 6) == 6
    assert nonce(2**60, 6, 6, 6) == 6, "a liar's is not needed"
    assert nonce(7, 6, signed=2) == 6, "with those who signed, who take any"
    assert nonce(7, 6) == 7
    assert told(NcnError("no answer"), EndorsementRefused("the price")).next_nonce == 0


def test_reasons_are_short_and_of_one_line() -> None:
    refusal = told(EndorsementRefused("x\n\x1b[31m" * 1_000), NcnError("gone"))
    text = str(refusal)
    assert len(text) < 1_000
    assert text.isprintable()
    assert "gone" in text
