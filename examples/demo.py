"""``make demo``: start the network in one process, ask it one paid question, check the answer, settle, and stay up.

Every step is a command that a person could type; this only prints it first.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

QUESTION = "The quick brown fox jumps over the lazy dog."
HOME = Path(os.environ.get("NCN_HOME", ".ncn"))
PROOF = HOME / "answer.json"


def ncn(*arguments: str) -> list[str]:
    """Return the command line of ``ncn`` in this environment."""
    return [sys.executable, "-m", "ncn_framework.cli", *arguments]


def show(*arguments: str) -> None:
    """Print a command and run it; end with its status where it fails."""
    print(f"\n$ ncn {shlex.join(arguments)}", flush=True)
    done = subprocess.run(ncn(*arguments), check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> None:
    """Run the demonstration until Ctrl-C or SIGTERM."""
    os.environ["NCN_HOME"] = str(HOME)
    os.environ.setdefault("NCN_LOG_LEVEL", "WARNING")
    began = time.monotonic()
    print("$ ncn serve", flush=True)
    # a session of its own: Ctrl-C reaches this program alone, which passes it on once; twice would mean "at once"
    network = subprocess.Popen(ncn("serve"), stdout=subprocess.PIPE, text=True, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: network.send_signal(signal.SIGTERM))
    try:
        http = ""
        for line in network.stdout or ():
            print(line, end="", flush=True)
            if line.startswith("gateway: http "):
                http = line.split()[-1]
            if " ready" in line:
                break
        else:
            raise SystemExit(network.wait())
        print(f"(ready {time.monotonic() - began:.1f} s after process start)", flush=True)
        show("payments", "deposit", "5", "--gateway", http)
        show("embed", QUESTION, "--gateway", http, "--save", str(PROOF))
        show("payments", "settle", "--gateway", http)
        show("settled", str(PROOF), "--gateway", http)
        show("verify", str(PROOF))
        show("payments", "balance", "--gateway", http)
        print("\nAsk again, with curl alone (for nothing, which a development network allows):\n")
        body = f'{{"model": "minilm", "inputs": [{{"name": "text", "data": ["{QUESTION}"]}}], "payment": "free"}}'
        print(f"curl -s {http}/api/v1/inference -H 'Content-Type: application/json' -d '{body}'\n")
        print("The network stays up; Ctrl-C stops it.", flush=True)
        raise SystemExit(network.wait())
    finally:
        if network.poll() is None:
            network.terminate()
            network.wait()


if __name__ == "__main__":
    main()
