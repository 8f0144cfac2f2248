"""Where settings come from, before anybody knows what they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from ncn_framework.errors import ConfigError
from ncn_framework.sources import Sources, split_names, variable_of


def test_the_strongest_source_wins(tmp_path: Path) -> None:
    (tmp_path / "ncn.toml").write_text("[gateway]\nhttp_port = 1\n")
    names = ("NCN_GATEWAY_HTTP_PORT",)

    def find(sources: Sources) -> object:
        return sources.find("gateway", "http_port", names)

    assert find(Sources(environment={}, folder=tmp_path)) == (1, str(tmp_path / "ncn.toml"))
    (tmp_path / ".env").write_text("NCN_GATEWAY_HTTP_PORT=2\n")
    assert find(Sources(environment={}, folder=tmp_path)) == ("2", ".env NCN_GATEWAY_HTTP_PORT")
    environment = {"NCN_GATEWAY_HTTP_PORT": "3"}
    assert find(Sources(environment=environment, folder=tmp_path)) == ("3", "environment NCN_GATEWAY_HTTP_PORT")
    flags = {("gateway", "http_port"): 4}
    assert find(Sources(flags, environment, tmp_path)) == (4, "flag")
    assert Sources(environment={}, folder=tmp_path).find("gateway", "grpc_port", ()) is None


def test_a_preset_is_the_weakest_source(tmp_path: Path) -> None:
    presets = {("gateway", "payment_modes"): ("free",)}
    found = Sources(environment={}, folder=tmp_path, presets=presets)
    assert found.find("gateway", "payment_modes", ()) == (("free",), "preset of ncn serve")
    assert found.find("gateway", "http_port", ()) is None
    (tmp_path / "ncn.toml").write_text('[gateway]\npayment_modes = ["voucher"]\n')
    stronger = Sources(environment={}, folder=tmp_path, presets=presets)
    assert stronger.find("gateway", "payment_modes", ()) == (["voucher"], str(tmp_path / "ncn.toml"))


def test_the_first_variable_is_the_strongest_and_an_empty_one_is_none(tmp_path: Path) -> None:
    sources = Sources(environment={"A": "", "B": "b", "C": "c"}, folder=tmp_path)
    assert sources.find("t", "f", ("A", "B", "C")) == ("b", "environment B")


def test_an_empty_variable_does_not_hide_a_weaker_source(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=from-file\n")
    assert Sources(environment={"A": ""}, folder=tmp_path).find("t", "f", ("A",)) == ("from-file", ".env A")


def test_ncn_config_names_another_file(tmp_path: Path) -> None:
    (tmp_path / "ncn.toml").write_text('home = "here"')
    other = tmp_path / "other.toml"
    other.write_text('home = "there"')
    assert Sources(environment={"NCN_CONFIG": str(other)}, folder=tmp_path).toml == {"home": "there"}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.toml", None, "NCN_CONFIG names .*missing.toml, which does not exist"),
        ("bad.toml", b"= 1", "bad.toml is not valid TOML"),
        ("binary.toml", b"\xff", "binary.toml is not valid TOML"),
        ("", None, "cannot be read: Is a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        Sources(environment={"NCN_CONFIG": str(tmp_path / name)}, folder=tmp_path)


def test_a_key_where_a_table_belongs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ncn.toml").write_text("gateway = 1")
    with pytest.raises(ConfigError, match=r"gateway is not a table; write \[gateway\]"):
        Sources(environment={}, folder=tmp_path).find("gateway", "http_port", ())


def test_names_are_a_list_or_text_with_commas(tmp_path: Path) -> None:
    assert Sources(environment={}, folder=tmp_path).names("plugins") == []
    assert Sources(environment={"NCN_PLUGINS": " a, b,,"}, folder=tmp_path).names("plugins") == ["a", "b"]
    (tmp_path / "ncn.toml").write_text('plugins = ["b", "a"]')
    assert Sources(environment={}, folder=tmp_path).names("plugins") == ["b", "a"]


@pytest.mark.parametrize("value", ["5", "[5]", "{a = 1}"])
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "ncn.toml").write_text(f"plugins = {value}")
    with pytest.raises(ConfigError, match=r"setting plugins from .*ncn.toml is not a list of names"):
        Sources(environment={}, folder=tmp_path).names("plugins")


def test_names_of_variables() -> None:
    assert variable_of("gateway", "http_port") == "NCN_GATEWAY_HTTP_PORT"
    assert variable_of("", "home") == "NCN_HOME"


def test_what_is_no_text_is_not_split() -> None:
    assert split_names(["a,b"]) == ["a,b"]
    assert split_names("a,b") == ["a", "b"]
