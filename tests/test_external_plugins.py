"""Swapping, shown from outside: wheels built and installed in a fresh environment, two foreign plugins among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

from bench.network import Network
from ncn_client import Client
from ncn_framework.tensors import split_bytes

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
OURS = (".", *(f"plugins/ncn_{name}" for name in ("gateway", "compute", "client", "payments", "registry")))
FOREIGN = ("tests/external/ncn_echo", "tests/external/ncn_sticky")


def run(*command: str | Path, **environment: str) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a fresh environment into which every wheel has been installed, as a user would."""
    folder = tmp_path_factory.mktemp("fresh")
    wheels = folder / "wheels"
    for project in (*OURS, *FOREIGN):
        run(sys.executable, "-m", "build", "--wheel", "--installer", "pip", "--outdir", wheels, ROOT / project)
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv" / "bin" / "python"
    constraints = folder / "constraints.txt"
    # this environment's torch: a range would let pip fetch gigabytes for an accelerator
    constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    run(interpreter, "-m", "pip", "install", "--quiet", "-c", constraints, *sorted(wheels.glob("*.whl")))
    return interpreter


def test_the_root_distribution_is_the_kernel_alone(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--installer", "pip", "--outdir", tmp_path, ROOT)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    names = set(run(sys.executable, "-m", "zipfile", "-l", wheel).split())
    packages = {name.partition("/")[0] for name in names if "/" in name}
    assert packages == {"ncn_framework", next(p for p in packages if p.endswith(".dist-info"))}
    listed = run("tar", "tzf", sdist).split()
    top = {name.split("/")[1] for name in listed}
    around = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "hatch.toml", "PKG-INFO", ".gitignore"}
    assert top == {"ncn_framework"} | around


def test_foreign_runtime_and_router(python: Path, models: Path, tmp_path: Path) -> None:
    shown = json.loads(run(python, "-m", "ncn_framework.cli", "plugins", "--json", NCN_HOME=str(tmp_path)))
    assert {"echo", "sticky", "gateway", "compute", "client", "payments", "registry"} == {
        row["name"] for row in shown["plugins"]
    }
    assert shown["order"]["ncn_route"] == ["sticky", "gateway"]
    assert shown["order"]["ncn_execute"][0] == "echo"

    running = Network(tmp_path / "home", models, python=str(python))
    try:
        running.start()
        second = running.start("compute", NCN_HOME=str(tmp_path / "second"))
        running.wait_ready()
        with Client(running.url) as client:
            answer = client.infer("echo", {"text": ["one two", "three"]})
            words = [split_bytes(part["word"])[0] for part in answer.parts]
            assert words == [b"one", b"two", b"three"]
            assert answer.receipt.receipt.units == 3
            while next(m for m in client.models() if m.name == "mlp").nodes < 2:
                assert second.popen.poll() is None
            asked = [client.infer("mlp", {"x": [float(n)] * 256}).receipt.receipt.node for n in range(10)]
        assert len(set(asked)) == 1, "the built-in router would have spread them"
        log = run("cat", *(tmp_path / "home").glob("*.log"))
        addresses = [line.split()[-1] for line in log.splitlines() if line.startswith("compute: address")]
        assert "0x" + asked[0].hex() == min(address.lower() for address in addresses)
    finally:
        running.close()
