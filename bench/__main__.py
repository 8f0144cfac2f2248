"""``python -m bench NAME``: run one benchmark and print its table."""

from __future__ import annotations

import argparse

from . import gas, generate, overhead, payments, registry, routing, startup

BENCHMARKS = {
    "gas": gas,
    "generate": generate,
    "overhead": overhead,
    "payments": payments,
    "registry": registry,
    "routing": routing,
    "startup": startup,
}


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="NAME")
    for name, module in BENCHMARKS.items():
        text = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=text, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
