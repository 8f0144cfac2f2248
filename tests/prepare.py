"""Installs what the tests need from outside Python, where it may, and says what it had to leave out and why.

What is left out is written to .ncn/missing, one name a line; the tests that need it are skipped, or fail where
TESTS_SKIP=forbid.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# command that must be there, Debian package that brings it, which tests want it
NEEDED = (
    ("curl", "curl", "the commands that the documents show"),
    ("ip", "iproute2", "a swarm that is parted in two, in network namespaces"),
    ("npm", "npm", "the contracts' compiler and tests, and a second kind of chain (anvil)"),
)
CONTRACTS = Path("contracts")


def main() -> None:
    """Install each missing command with apt-get where this is root on Debian."""
    missing = []
    for command, package, purpose in NEEDED:
        if shutil.which(command):
            continue
        if os.geteuid() == 0 and shutil.which("apt-get"):
            print(f"installing {package}: {purpose}", flush=True)
            subprocess.run(["apt-get", "update", "-qq"], check=False)
            subprocess.run(["apt-get", "install", "-qq", "-y", package], check=False)
        if not shutil.which(command):
            missing.append(command)
            print(f"left out: {purpose}; there is no {command}, and it cannot be installed here", file=sys.stderr)
    if "npm" not in missing and not installed():
        print("installing the contracts' toolchain (npm ci in contracts/)", flush=True)
        if subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=CONTRACTS, check=False).returncode:
            missing.append("contracts")
            print("left out: the contracts' tests; npm could not install what they need", file=sys.stderr)
    report = Path(".ncn/missing")
    report.parent.mkdir(exist_ok=True)
    report.write_text("".join(f"{command}\n" for command in missing))
    if missing and os.environ.get("TESTS_SKIP") == "forbid":
        sys.exit(f"not installed: {', '.join(missing)}; TESTS_SKIP=forbid makes that a failure")


def installed() -> bool:
    """Return whether what npm installed is what the lock file says."""
    done = CONTRACTS / "node_modules" / ".package-lock.json"
    return done.exists() and done.stat().st_mtime >= (CONTRACTS / "package-lock.json").stat().st_mtime


if __name__ == "__main__":
    main()
