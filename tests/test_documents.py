"""Every command that a document shows is run here, and every table that repeats the code is compared with it.

A ``console`` block's lines that begin with ``$`` are commands. Those of one document run in order, in a folder of
their own, with the documents' ports replaced by free ones. ``ncn serve`` and ``make demo`` stay up until the end of
their document. What would run this test inside itself (``make test`` and the checks) is looked up instead.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.network import Network
from ncn_framework.digests import TYPES
from ncn_framework.errors import TABLE
from ncn_framework.signing import address_hex
from ncn_payments.devkeys import accounts
from ncn_registry.config import RegistrySettings

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "plugins/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
INSIDE = re.compile(r"make (test|check|contracts)$|hatch run (check|fix|format|lint|types|imports|generated|test)$")
MISSING = ROOT / ".ncn" / "missing"


def commands(path: Path) -> list[str]:
    """Return the commands of a document, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def with_commands() -> list[Path]:
    """Return the documents that show any command."""
    return [path for path in DOCUMENTS if commands(path)]


def need(command: str) -> None:
    """Skip, or fail where skipping is forbidden, if a command is missing that could not be installed."""
    if shutil.which(command) is None:
        assert os.environ.get("TESTS_SKIP") != "forbid", f"{command} is missing"
        pytest.skip(f"there is no {command} here; tests/prepare.py says why")


@contextmanager
def staying_up(command: str, until: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start a command that stays up, wait for a line with ``until``, and end it with SIGTERM; it must exit with 0."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"] if "=" not in command.split()[0] else ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    seen = ""
    try:
        for line in process.stdout:
            seen += line
            if until in line:
                break
        else:
            pytest.fail(f"{command} ended with {process.wait()}:\n{seen}")
        yield seen
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.stdout.read()
        process.stdout.close()
        assert process.wait(60) in (0, -signal.SIGTERM, 2)


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", with_commands(), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands(document: Path, tmp_path: Path) -> None:
    need("curl")
    network = Network(tmp_path / "home", tmp_path / "unused")
    environment = network.environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    del environment["MODEL_PATH"], environment["NCN_GATEWAY_PAYMENT_MODES"]
    ports = {
        "8080": network.http_port,
        "9000": environment["NCN_GATEWAY_WEBSOCKET_PORT"],
        "50050": network.registry_port,
        "50051": network.grpc_port,
    }
    started: list[str] = []
    _put_files(document, tmp_path)
    if any(command.startswith("pip install") for command in commands(document)):
        environment["PATH"] = f"{_layered_environment(tmp_path)}:{environment['PATH']}"
    with ExitStack() as stack:
        for shown in commands(document):
            command = re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda m: str(ports[m[0]]), shown)
            if INSIDE.match(command):
                _exists(command)
            elif command == "make demo":
                output = stack.enter_context(staying_up(command, "stays up", ROOT, environment))
                asked = re.search(r"^curl .*$", output, re.MULTILINE)
                assert asked is not None
                assert '"SETTLED"' in _run(asked[0], tmp_path, environment)
                stack.close()
            elif "ncn serve" in command:
                stack.enter_context(staying_up(command, " ready", tmp_path, environment))
                started.append(command)
                roles = " ".join(started)
                if command == "ncn serve" or ("serve gateway" in roles and "serve compute" in roles):
                    network.wait_ready()
            else:
                _run(command, ROOT if command.startswith("hatch") else tmp_path, environment)


def _run(command: str, folder: Path, environment: dict[str, str]) -> str:
    if command.startswith("hatch run bench"):  # a short run shows that it works; the figures want a quiet machine
        name = command.split()[3]
        quick = {
            "gas": "",
            "overhead": "--seconds 0.2 --concurrency 2 --workload W1",
            "payments": "--seconds 0.2 --rounds 1 --settle 2",
            "registry": "--quick",
            "routing": "",
            "startup": "--runs 1",
        }
        command = f"{sys.executable} -m bench {name} {quick[name]}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _put_files(document: Path, folder: Path) -> None:
    """Give a tutorial's document the package that it builds."""
    if document.name == "writing-a-plugin.md":
        shutil.copytree(ROOT / "tests" / "external" / "ncn_echo", folder / "ncn_echo")


def _layered_environment(folder: Path) -> Path:
    """Return the bin folder of an environment on top of this one, so that an installed package leaves it alone."""
    made = folder / "venv"
    venv.create(made, with_pip=True)
    (site,) = made.glob("lib/python*/site-packages")
    (site / "below.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name, module in (("ncn", "ncn_framework.cli"), ("pytest", "pytest")):
        script = made / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{made}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    return made / "bin"


def _exists(command: str) -> None:
    """Check that a target or script is there, without running it."""
    name = command.split()[-1]
    if command.startswith("make"):
        assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {name}"
    else:
        scripts = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]["default"]["scripts"]
        assert name in scripts, f"no script {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


def test_error_table_is_the_code() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (\w+) \| (yes|no) \|$", text, re.MULTILINE)
    expected = [(e.code, str(e.http), e.grpc, "yes" if e.retryable else "no") for e in TABLE.values()]
    assert rows == expected


def test_registry_settings_are_the_code() -> None:
    text = (ROOT / "docs" / "registry.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| ", text, re.MULTILINE)
    fields = RegistrySettings.model_fields
    assert rows
    assert rows == [(name, str(fields[name].default)) for name, _ in rows]


def test_signed_types_are_the_code() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    rows = re.findall(r"^\| `(\w+\(\w+ .*?\))` \| ", text, re.MULTILINE)
    assert rows == [types for name, types in TYPES.items() if name != "EIP712Domain"]


@pytest.mark.e2e
@pytest.mark.parametrize("document", ["README.md", "docs/openai.md", "docs/registry.md"])
def test_python_for_users_runs(document: str, tmp_path: Path) -> None:
    network = Network(tmp_path / "home", tmp_path / "unused")
    del network.environment["MODEL_PATH"], network.environment["NCN_GATEWAY_PAYMENT_MODES"]
    try:
        network.start()
        network.wait_ready()
        (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)
        code = code.replace("http://127.0.0.1:8080", network.url)
        done = subprocess.run(
            [sys.executable, "-c", code], env=network.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if document == "docs/registry.md":  # the committee of a gateway, which is none of the five validators
            validators = [address for name, address in accounts().items() if name.startswith("validator")]
            assert sorted(done.stdout.split()) == sorted(map(address_hex, validators))
    finally:
        network.close()
