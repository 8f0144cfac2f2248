"""Settings of the chain: names, defaults, and what is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ncn_framework.config import Config
from ncn_framework.errors import ConfigError
from ncn_framework.sources import Sources
from ncn_payments.config import PaymentsSettings


def loaded(**environment: str) -> PaymentsSettings:
    return Config(Sources(environment=environment)).load(PaymentsSettings)


def test_defaults() -> None:
    settings = loaded()
    assert (settings.chain_kind, settings.rpc_urls) == ("embedded", ())
    assert settings.addresses_path(Path("/home"), 5) == Path("/home/deployments/5.json")


def test_names_of_the_reference_network() -> None:
    settings = loaded(RPC_URL="http://a:1/x, https://b/y")
    assert settings.chain_kind == "rpc"
    assert settings.rpc_urls == ("http://a:1/x", "https://b/y")
    assert loaded(RPC_URL="http://a", NCN_PAYMENTS_RPC_URL="http://b").rpc_urls == ("http://b",)
    assert loaded(NCN_PAYMENTS_CHAIN="anvil").chain_kind == "anvil"
    assert loaded(NCN_PAYMENTS_CHAIN="anvil", RPC_URL="http://a").chain_kind == "rpc"
    assert loaded(NCN_PAYMENTS_ADDRESSES="/x.json").addresses_path(Path("/home"), 5) == Path("/x.json")


@pytest.mark.parametrize("url", ["ws://a/SECRET", "SECRET", "http:///SECRET", "http://a,SECRET"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(ConfigError, match=r"URL \d of \d is not http") as caught:
        loaded(RPC_URL=url).rpc_urls  # noqa: B018
    assert "SECRET" not in str(caught.value)


def test_keys_are_masked() -> None:
    config = Config(Sources(environment={"RPC_URL": "http://a/SECRET", "NCN_WALLET_PASSWORD": "SECRET-P"}))
    config.check([PaymentsSettings])
    rows = config.explain([PaymentsSettings])
    assert "SECRET" not in repr(rows)
    assert "SECRET" not in repr(config.load(PaymentsSettings))
    assert {row.value for row in rows if row.field in ("rpc_url", "wallet_password")} == {"********"}


@pytest.mark.parametrize(
    "environment",
    [{"NCN_PAYMENTS_CHAIN": "ropsten"}, {"NCN_PAYMENTS_ANVIL_PORT": "70000"}, {"NCN_PAYMENTS_CONFIRMATIONS": "0"}],
)
def test_bad_values(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"payments\."):
        loaded(**environment)
