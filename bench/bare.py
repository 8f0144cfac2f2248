"""The model alone, in process: ``python -m bench.bare DIRECTORY SECONDS``, the request's JSON on standard input."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from ncn_compute.manifest import load
from ncn_compute.worker.libraries import build
from ncn_compute.worker.protocol import Array, load_message
from ncn_framework.wire.json import SubmitJson, decode, inputs_from_json

from .load import Result, cpu_s


def main(directory: Path, seconds: float) -> Result:
    """Call the model again and again with one thread, as the jailed worker does."""
    torch.set_num_threads(1)
    manifest = load(directory)
    form: SubmitJson = decode(sys.stdin.buffer.read(), SubmitJson)
    inputs = inputs_from_json(form.inputs, manifest.inputs)
    model = build(load_message(directory, manifest))
    arrays = [Array(t.name, t.dtype, t.shape, memoryview(t.data)) for t in inputs]
    latencies: list[float] = []
    with torch.inference_mode():
        for _ in range(20):
            model.execute(arrays, {})
        used = cpu_s()
        start = time.perf_counter()
        while (began := time.perf_counter()) < start + seconds:
            model.execute(arrays, {})
            latencies.append(time.perf_counter() - began)
        wall = time.perf_counter() - start
    return Result.of(latencies, wall, cpu_s() - used)


if __name__ == "__main__":
    json.dump(asdict(main(Path(sys.argv[1]), float(sys.argv[2]))), sys.stdout)
