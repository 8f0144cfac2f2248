"""The signed form, judged by eth-account."""

from __future__ import annotations

from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from ncn_framework.digests import keccak
from ncn_framework.signing import Signer, address_hex
from ncn_payments.transactions import Transaction

KEY = bytes(range(1, 33))
UINT64, UINT96 = st.integers(0, 2**64 - 1), st.integers(0, 2**96 - 1)


@given(
    st.builds(
        Transaction,
        chain_id=st.integers(1, 2**64 - 1),
        nonce=UINT64,
        priority_fee_wei=UINT64,
        max_fee_wei=UINT96,
        gas=UINT64,
        to=st.none() | st.binary(min_size=20, max_size=20),
        value=UINT96,
        data=st.binary(max_size=300),
    )
)
def test_signed_as_eth_account_signs(transaction: Transaction) -> None:
    raw, transaction_hash = transaction.signed(Signer(KEY))
    fields = {
        "type": 2,
        "chainId": transaction.chain_id,
        "nonce": transaction.nonce,
        "maxPriorityFeePerGas": transaction.priority_fee_wei,
        "maxFeePerGas": transaction.max_fee_wei,
        "gas": transaction.gas,
        "value": transaction.value,
        "data": transaction.data,
    }
    if transaction.to is not None:
        fields["to"] = address_hex(transaction.to)
    other = Account.sign_transaction(fields, KEY)
    assert raw == bytes(other.raw_transaction)
    assert transaction_hash == bytes(other.hash) == keccak(raw)
    assert Account.recover_transaction(raw) == address_hex(Signer(KEY).address)
