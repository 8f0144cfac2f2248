"""The command ``ncn``: quick to start, plain in its errors, and open to plugins' commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from ncn_framework import __version__, cli, hookimpl
from ncn_framework.errors import NoCapacity
from ncn_framework.manager import HOOK_KINDS, loaded_plugin

Run = Callable[..., subprocess.CompletedProcess[str]]

SLOW = (
    "asyncio",
    "grpc",
    "httpx",
    "hypercorn",
    "libp2p",
    "msgspec",
    "ncn_framework.testing",
    "numpy",
    "prometheus_client",
    "pydantic",
    "sqlalchemy",
    "starlette",
    "torch",
    "trio",
    "web3",
)


@pytest.fixture
def ncn(tmp_path: Path) -> Run:
    """Return a function that runs ``ncn`` in an empty folder with nothing in its environment but what is given."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ncn_framework.cli", *arguments],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_what_is_slow_is_not_imported_for_the_help(tmp_path: Path, argument: str) -> None:
    code = (
        "import sys\nfrom ncn_framework.cli import main\n"
        f"try:\n    main([{argument!r}])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert "click" in imported
    assert imported.isdisjoint(SLOW), imported & set(SLOW)


def test_the_version_is_one_line(ncn: Run) -> None:
    done = ncn("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ncn {__version__}\n", "")


def test_the_help_shows_the_kernels_and_the_plugins_commands(ncn: Run) -> None:
    text = ncn("--help").stdout
    for command in ("serve", "plugins", "config", "models", "node", "registry", "sandbox", "infer", "embed", "verify"):
        assert f"\n  {command} " in text, command


def test_serve_has_a_flag_for_every_setting(ncn: Run) -> None:
    text = ncn("serve", "--help").stdout
    for flag in (
        "--home",
        "--log-level",
        "--gateway-http-port",
        "--compute-sandbox-mode",
        "--p2p-listen-addr",
        "--grpc-listen-addr",
    ):
        assert f"  {flag} " in text, flag


def test_plugins_are_shown_with_hooks_and_order(ncn: Run) -> None:
    shown = json.loads(ncn("plugins", "--json").stdout)
    assert {"gateway", "compute", "client"} <= {row["name"] for row in shown["plugins"]}
    assert all(set(row["hooks"]) <= set(HOOK_KINDS) for row in shown["plugins"])
    assert list(shown["order"]) == [hook for hook in HOOK_KINDS if hook in shown["order"]]
    text = ncn("plugins").stdout
    assert "Effective order, first called first:" in text
    for hook, names in shown["order"].items():
        assert f"    {hook} [{HOOK_KINDS[hook]}]: {' > '.join(names)}\n" in text


def test_the_order_of_the_settings_and_disabled_plugins_show(ncn: Run) -> None:
    shown = json.loads(ncn("plugins", "--json", NCN_PLUGINS="gateway", NCN_DISABLED_PLUGINS="client").stdout)
    assert shown["plugins"][0]["name"] == "gateway"
    assert "client" not in {row["name"] for row in shown["plugins"]}


def test_config_show_says_where_values_come_from(ncn: Run, tmp_path: Path) -> None:
    (tmp_path / "ncn.toml").write_text("[gateway]\nhttp_port = 8888\n")
    (tmp_path / ".env").write_text("SANDBOX_MODE=permissive\n")
    done = ncn("config", "show", "--json", GATEWAY_PRIVATE_KEY="42" * 32)
    rows = {(row["table"], row["field"]): row for row in json.loads(done.stdout)}
    assert rows["gateway", "http_port"]["value"] == "8888"
    assert rows["gateway", "http_port"]["origin"] == str(tmp_path / "ncn.toml")
    assert rows["compute", "sandbox_mode"]["origin"] == ".env SANDBOX_MODE"
    assert rows["gateway", "private_key"]["value"] == "********"
    assert rows["", "log_level"]["origin"] == "default"
    text = ncn("config", "show", GATEWAY_PRIVATE_KEY="42" * 32).stdout
    assert "gateway.http_port" in text
    assert "4242" not in text + done.stdout


@pytest.mark.parametrize(
    ("roles", "modes", "origin"),
    [
        ([], "voucher,escrow,exact,free", "preset of ncn serve"),
        (["gateway"], "voucher,escrow,exact", "default"),
    ],
)
def test_config_show_takes_the_roles_of_serve(ncn: Run, roles: list[str], modes: str, origin: str) -> None:
    shown = json.loads(ncn("config", "show", "--json", *roles).stdout)
    [row] = [row for row in shown if (row["table"], row["field"]) == ("gateway", "payment_modes")]
    assert (row["value"], row["origin"]) == (modes, origin)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["config", "show"], {"NCN_GATEWAY_HTTP_PROT": "1"}, "ncn: config: the environment sets NCN_GATEWAY_HTTP_PROT"),
        (["config", "show"], {"NCN_GATEWAY_HTTP_PORT": "x"}, "ncn: config: setting gateway.http_port from environment"),
        (["plugins"], {"NCN_PLUGINS": "ghost"}, "ncn: plugin: plugin 'ghost' is named in the settings but not"),
        (["plugins"], {"NCN_CONFIG": "/nowhere.toml"}, "ncn: config: NCN_CONFIG names /nowhere.toml"),
        (
            ["serve", "compute", "gateway"],
            {"NCN_DISABLED_PLUGINS": "compute"},  # of those that are left, some accompany it
            "ncn: config: no plugin serves role 'compute'; try: pip install",
        ),
    ],
)
def test_an_error_is_one_line_and_exit_status_2(
    ncn: Run, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    done = ncn(*arguments, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["no-such-command"], ["serve", "kitchen"], ["serve", "--no-such-flag"]])
def test_a_mistyped_command_line_is_exit_status_2(ncn: Run, arguments: list[str]) -> None:
    done = ncn(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


# --- commands of plugins ---


@click.command("fail")
def fail() -> None:
    """Fail with an error of the tree."""
    raise NoCapacity("later")


@click.command("leave")
@click.pass_context
def leave(context: click.Context) -> None:
    """Leave with a status."""
    context.exit(3)


@click.command("answer")
def answer() -> str:
    """Return something that is no status."""
    return "text"


@click.command("interrupt")
def interrupt() -> None:
    """Be interrupted."""
    raise KeyboardInterrupt


class _Plugin:
    roles = ()

    def __init__(self, node: object) -> None: ...

    @hookimpl
    def ncn_commands(self) -> tuple[click.Command, ...]:
        return (fail, leave, answer, interrupt)


@pytest.mark.parametrize(("name", "status"), [("fail", 1), ("leave", 3), ("interrupt", 130), ("answer", 0)])
def test_a_plugins_command_ends_with_its_status(
    name: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_plugins", lambda sources=None: [loaded_plugin("extra", _Plugin)])
    try:
        cli.main([name])
        ended = 0
    except SystemExit as end:
        ended = int(end.code or 0)
    assert ended == status
    assert capsys.readouterr().err.strip() == ("ncn: no-capacity: later" if name == "fail" else "")
