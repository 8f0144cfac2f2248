"""The well-known keys are those that everybody knows, and are used nowhere else."""

from __future__ import annotations

import pytest
from eth_account import Account

from ncn_framework.errors import ConfigError
from ncn_framework.signing import address_hex
from ncn_payments.devkeys import ACCOUNTS, MNEMONIC, accounts, development_signer, require_development


def test_they_are_what_other_tools_derive() -> None:
    Account.enable_unaudited_hdwallet_features()
    for index, name in enumerate(ACCOUNTS):
        other = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
        assert address_hex(accounts()[name]) == other.address
        assert development_signer(name, 31337).address == accounts()[name]


def test_first_and_last_as_every_tool_shows_them() -> None:
    assert address_hex(accounts()["deployer"]) == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    assert address_hex(accounts()["client"]) == "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720"


@pytest.mark.parametrize("chain_id", [0, 1, 31336, 11155111])
def test_refused_elsewhere(chain_id: int) -> None:
    for attempt in (lambda: require_development(chain_id), lambda: development_signer("deployer", chain_id)):
        with pytest.raises(ConfigError, match=f"chain id {chain_id} is no development network"):
            attempt()
