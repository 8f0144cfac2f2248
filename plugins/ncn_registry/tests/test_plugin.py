"""The plugin's answers to the hooks: which part it has in which process, and that nothing slow is imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ncn_framework.manager import ROLES
from ncn_registry.client import RegistryClient
from ncn_registry.config import RegistrySettings
from ncn_registry.plugin import Plugin
from ncn_registry.registry import Registry

from .network import a_node


@pytest.mark.parametrize(
    ("role", "part"), [("registry", Registry), ("gateway", RegistryClient), ("compute", RegistryClient)]
)
def test_each_role_has_its_part(tmp_path: Path, role: str, part: type) -> None:
    node = a_node(role, tmp_path)
    assert isinstance(node.plugins.instances["registry"].part, part)
    assert node.plugins.settings() == [RegistrySettings]
    assert [command.name for command in node.plugins.commands()] == ["registry", "node", "subnet"]
    routes = [route.path for route in node.plugins.http_routes(node)]
    assert routes == ([] if role == "registry" else ["/api/v1/nodes"])
    assert Plugin.roles == ROLES


def test_nothing_slow_is_imported_with_the_plugin_or_in_a_gateways_part() -> None:
    code = (
        "import sys, ncn_registry.plugin\nassert 'grpc' not in sys.modules\n"
        "import ncn_registry.client, ncn_registry.registry\n"
        "assert not {'libp2p', 'trio', 'multiaddr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
