"""Settings: precedence with origin, unknown names with the closest known one, names of the reference network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, SecretStr

from ncn_framework import Config, Names, Settings, known_as, serving
from ncn_framework.config import CoreSettings, flag_of
from ncn_framework.errors import ConfigError
from ncn_framework.lifecycle import StageLimits
from ncn_framework.manager import build_manager, find_plugins
from ncn_framework.sources import Sources
from ncn_gateway.config import GatewaySettings


class Kitchen(Settings):
    """A table with one field of each kind."""

    table = "kitchen"

    ovens: int = Field(1, ge=0)
    cooks: Names = ()
    key: SecretStr = SecretStr("")
    door: str = Field("open", json_schema_extra=known_as("KITCHEN_DOOR", "--door"))  # type: ignore[arg-type]


def config(
    tmp_path: Path, flags: Any = None, toml: str = "", dotenv: str = "", presets: Any = None, **environment: str
) -> Config:
    (tmp_path / "ncn.toml").write_text(toml)
    (tmp_path / ".env").write_text(dotenv)
    return Config(Sources(flags, environment, tmp_path, presets))


def explained(found: Config) -> dict[str, tuple[str, str]]:
    return {f"{row.table}.{row.field}": (row.value, row.origin) for row in found.explain([Kitchen])}


def test_every_value_has_its_origin(tmp_path: Path) -> None:
    toml, dotenv = "[kitchen]\novens = 2", "NCN_KITCHEN_OVENS=3"
    flag = {("kitchen", "ovens"): "5"}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "1", "default"),
        ({"presets": {("kitchen", "ovens"): 6}}, "6", "preset of ncn serve"),
        ({"toml": toml}, "2", str(tmp_path / "ncn.toml")),
        ({"toml": toml, "presets": {("kitchen", "ovens"): 6}}, "2", str(tmp_path / "ncn.toml")),
        ({"toml": toml, "dotenv": dotenv}, "3", ".env NCN_KITCHEN_OVENS"),
        ({"toml": toml, "dotenv": dotenv, "NCN_KITCHEN_OVENS": "4"}, "4", "environment NCN_KITCHEN_OVENS"),
        ({"toml": toml, "dotenv": dotenv, "NCN_KITCHEN_OVENS": "4", "flags": flag}, "5", "flag"),
    ]
    for sources, value, origin in cases:
        found = config(tmp_path, **sources)
        assert explained(found)["kitchen.ovens"] == (value, origin)
        assert found.load(Kitchen).ovens == int(value)


def test_a_name_of_the_reference_network_works_but_ours_is_stronger(tmp_path: Path) -> None:
    assert config(tmp_path, KITCHEN_DOOR="ajar").load(Kitchen).door == "ajar"
    assert config(tmp_path, KITCHEN_DOOR="ajar", NCN_KITCHEN_DOOR="shut").load(Kitchen).door == "shut"
    assert config(tmp_path, dotenv="KITCHEN_DOOR=ajar").load(Kitchen).door == "ajar"
    assert flag_of(Kitchen, "door") == "--door"
    assert flag_of(Kitchen, "ovens") == "--kitchen-ovens"
    assert flag_of(CoreSettings, "log_level") == "--log-level"


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("GATEWAY_PRIVATE_KEY", "01" * 32, ("gateway.private_key", "********")),
        ("GATEWAY_ADDR", "a:1, b:2", ("compute.gateway_addr", "a:1,b:2")),
        ("MODEL_PATH", "/models", ("compute.model_path", "/models")),
        ("SANDBOX_MODE", "permissive", ("compute.sandbox_mode", "permissive")),
    ],
)
def test_the_reference_networks_variables(tmp_path: Path, variable: str, value: str, shown: tuple[str, str]) -> None:
    tables = build_manager(find_plugins()).settings()
    found = config(tmp_path, **{variable: value})
    found.check(tables)
    rows = {f"{row.table}.{row.field}": row for row in found.explain(tables)}
    assert rows[shown[0]].value == shown[1]
    assert rows[shown[0]].origin == f"environment {variable}"


def test_secrets_are_masked_everywhere(tmp_path: Path) -> None:
    found = config(tmp_path, NCN_KITCHEN_KEY="hunter2")
    assert found.load(Kitchen).key.get_secret_value() == "hunter2"
    assert explained(found)["kitchen.key"] == ("********", "environment NCN_KITCHEN_KEY")
    assert "hunter2" not in repr(found.load(Kitchen)) + repr(found.explain([Kitchen]))
    assert explained(config(tmp_path))["kitchen.key"] == ("", "default")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"NCN_KITCHEN_OVENS": "many"}, "setting kitchen.ovens from environment NCN_KITCHEN_OVENS: .*valid integer"),
        ({"dotenv": "NCN_KITCHEN_OVENS=-1"}, r"setting kitchen.ovens from \.env NCN_KITCHEN_OVENS: .*greater than"),
        ({"toml": "[kitchen]\ncooks = 5"}, "setting kitchen.cooks from .*ncn.toml: "),
        ({"flags": {("kitchen", "ovens"): "x"}}, "setting kitchen.ovens from flag: "),
        ({"presets": {("kitchen", "ovens"): "x"}}, "setting kitchen.ovens from preset of ncn serve: "),
    ],
)
def test_a_bad_value_names_setting_and_origin(tmp_path: Path, sources: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **sources).load(Kitchen)


def test_a_bad_secret_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        config(tmp_path, toml="[kitchen]\nkey = [424242]").load(Kitchen)
    assert "424242" not in str(refused.value)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {"NCN_KITCHEN_OVEN": "1"},
            "the environment sets NCN_KITCHEN_OVEN, which no plugin knows; did you mean NCN_KITCHEN_OVENS",
        ),
        ({"dotenv": "NCN_HOMES=x"}, r"\.env sets NCN_HOMES, which no plugin knows; did you mean NCN_HOME\?"),
        ({"NCN_ZZZ": "1"}, "NCN_ZZZ, which no plugin knows; `ncn config show` lists the known ones"),
        ({"toml": "[kitchn]"}, r"'kitchn' is unknown; did you mean kitchen\?"),
        ({"toml": "log_levle = 'INFO'"}, r"'log_levle' is unknown; did you mean log_level\?"),
        ({"toml": "[kitchen]\novnes = 1"}, r"\[kitchen\] 'ovnes' is unknown; did you mean ovens\?"),
    ],
)
def test_what_nobody_owns_is_refused_with_a_suggestion(tmp_path: Path, sources: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **sources).check([Kitchen])


def test_what_somebody_owns_is_accepted(tmp_path: Path) -> None:
    found = config(
        tmp_path, toml="home = 'x'\n[kitchen]\novens = 1", NCN_KITCHEN_KEY="k", NCN_LOG_LEVEL="INFO", PATH="x"
    )
    found.check([Kitchen])
    (tmp_path / "c.toml").write_text("")
    config(tmp_path, NCN_CONFIG=str(tmp_path / "c.toml")).check([])


def test_a_preset_of_a_plugin_that_is_not_there_is_nobodys_mistake(tmp_path: Path) -> None:
    config(tmp_path, presets={("cellar", "bottles"): 3}).check([Kitchen])


def test_free_is_accepted_only_where_one_process_is_the_whole_network(tmp_path: Path) -> None:
    def modes(*roles: str, **environment: str) -> tuple[str, ...]:
        found = config(tmp_path, presets=serving.presets(roles), **environment)
        return tuple(found.load(GatewaySettings).payment_modes)

    assert modes("gateway") == modes("gateway", "compute") == ("voucher", "escrow", "exact")
    assert modes() == ("voucher", "escrow", "exact", "free")
    assert modes(NCN_GATEWAY_PAYMENT_MODES="voucher") == ("voucher",)
    with pytest.raises(ConfigError, match=r"setting gateway.payment_modes from environment .*at least 1 item"):
        modes("gateway", NCN_GATEWAY_PAYMENT_MODES=",")


def test_two_plugins_cannot_own_one_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two plugins own one table: , kitchen"):
        config(tmp_path).check([Kitchen, Kitchen])


# --- the kernel's own ---


def test_the_defaults_are_those_of_the_kernel(tmp_path: Path) -> None:
    core = config(tmp_path).core
    assert core.stage_limits == StageLimits()
    assert core.domain.chain_id == 31337
    assert core.plugins == core.disabled_plugins == ()


def test_stage_limits_and_domain_come_from_the_settings(tmp_path: Path) -> None:
    core = config(
        tmp_path, toml=f"settle_timeout_ms = 7\npay_timeout_ms = 8\nchain_id = 5\ncontract = '0x{'ab' * 20}'"
    ).core
    assert (core.stage_limits.settle_ms, core.stage_limits.pay_ms) == (7, 8)
    assert core.domain.chain_id == 5
    assert core.domain.contract == b"\xab" * 20


def test_a_bad_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contract: .* is not an address"):
        _ = config(tmp_path, NCN_CONTRACT="0x12").core.domain


def test_home_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config(tmp_path).home == tmp_path / ".ncn"
    monkeypatch.chdir(tmp_path)
    assert config(tmp_path, NCN_HOME="here").home == tmp_path / "here"
