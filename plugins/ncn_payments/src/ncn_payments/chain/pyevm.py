"""What the embedded chain uses of py-evm; imported from here alone, because the import raises the recursion limit."""

from __future__ import annotations

from ..recursion import recursion_limit_kept

with recursion_limit_kept():
    from eth._utils.address import generate_contract_address
    from eth._utils.transactions import extract_chain_id, is_eip_155_signed_transaction
    from eth.abc import (
        AtomicWriteBatchAPI,
        BlockAPI,
        BlockHeaderAPI,
        ComputationAPI,
        ReceiptAPI,
        SignedTransactionAPI,
        StateAPI,
    )
    from eth.chains.base import Chain as EthChain
    from eth.db.atomic import AtomicDBWriteBatch
    from eth.db.backends.base import BaseAtomicDB
    from eth.exceptions import HeaderNotFound, PyEVMError, Revert, TransactionNotFound
    from eth.vm.forks.prague import PragueVM
    from eth.vm.spoof import SpoofTransaction
    from eth_bloom.bloom import BloomFilter
    from eth_typing import Address
    from eth_utils.exceptions import ValidationError

__all__ = [
    "Address",
    "AtomicDBWriteBatch",
    "AtomicWriteBatchAPI",
    "BaseAtomicDB",
    "BlockAPI",
    "BlockHeaderAPI",
    "BloomFilter",
    "ComputationAPI",
    "EthChain",
    "HeaderNotFound",
    "PragueVM",
    "PyEVMError",
    "ReceiptAPI",
    "Revert",
    "SignedTransactionAPI",
    "SpoofTransaction",
    "StateAPI",
    "TransactionNotFound",
    "ValidationError",
    "extract_chain_id",
    "generate_contract_address",
    "is_eip_155_signed_transaction",
]
