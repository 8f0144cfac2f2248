"""Writes the modules in this folder from its .proto files: ``python -m ncn_framework.wire.generate [--check]``.

Needs grpcio-tools and mypy-protobuf, which the development environment has.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

HERE = Path(__file__).parent


def generate(out: Path) -> None:
    """Write the modules and their stubs for every .proto file here below ``out``."""
    from grpc_tools import protoc

    root = HERE.parent.parent
    beside = str(Path(sys.executable).parent)  # where protoc finds mypy-protobuf without an activated environment
    os.environ["PATH"] = os.pathsep.join((beside, os.environ.get("PATH", os.defpath)))
    google = files("grpc_tools") / "_proto"
    protos = [str(path.relative_to(root)) for path in sorted(HERE.glob("*.proto"))]
    outs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy")] + [f"--mypy_grpc_out={out}"]
    if protoc.main(["protoc", f"-I{root}", f"-I{google}", *outs, *protos]):
        raise SystemExit("protoc failed; its messages are above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the checked-in modules; change nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {p.name: p.read_bytes() for p in (Path(folder) / "ncn_framework" / "wire").iterdir()}
    stale = [n for n, data in fresh.items() if not (HERE / n).is_file() or (HERE / n).read_bytes() != data]
    if arguments.check:
        if stale:
            sys.exit(f"out of date: {', '.join(sorted(stale))}; run: python -m ncn_framework.wire.generate")
        return
    for name in stale:
        (HERE / name).write_bytes(fresh[name])
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
