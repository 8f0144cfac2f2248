"""The checked-in protobuf modules are what the .proto files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ncn_framework.wire import gateway_pb2, messages_pb2, registry_pb2

WIRE = Path(messages_pb2.__file__).parent


def test_the_generated_modules_are_up_to_date() -> None:
    command = [sys.executable, "-m", "ncn_framework.wire.generate", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_proto_file_has_its_modules() -> None:
    for proto in WIRE.glob("*.proto"):
        for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
            assert (WIRE / f"{proto.stem}{suffix}").is_file()


def test_the_services_that_users_of_the_reference_network_know() -> None:
    services = {
        name: {method.name for method in service.methods}
        for module in (gateway_pb2, registry_pb2)
        for name, service in module.DESCRIPTOR.services_by_name.items()
    }
    assert services["GatewayClientService"] >= {
        "SubmitInferenceTask",
        "SubscribeToTaskUpdates",
        "GetTaskStatus",
        "CancelTask",
        "ConfirmPayment",
        "GetSupportedModels",
    }
    assert services["GatewayComputeService"] >= {
        "RegisterComputeNode",
        "UpdateHeartbeat",
        "ReceiveTask",
        "SubmitResult",
        "GetTask",
    }
    assert services["P2PRegistryService"] >= {
        "RegisterNode",
        "UpdateNodeHeartbeat",
        "DeregisterNode",
        "DiscoverNodes",
        "RequestPreprocessingValidation",
        "RequestCompletionValidation",
    }
