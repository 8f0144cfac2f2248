"""LitServe with the tiny MLP of workload W1: ``python litserve_server.py PORT default|best``.

Runs in the peer's own environment, which need not have anything of this repository.
"""

from __future__ import annotations

import sys
from typing import Any

import litserve  # type: ignore[import-not-found,unused-ignore]
import torch


class Mlp(litserve.LitAPI):  # type: ignore[misc,unused-ignore]
    """256 floats in, 16 out, in the JSON of our own API."""

    def setup(self, device: Any) -> None:
        torch.set_num_threads(1)  # as our worker
        layers = (torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
        self.model = torch.nn.Sequential(*layers)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe would take a type for a query parameter
        tensor = request["inputs"][0]
        return torch.tensor(tensor["data"]).view(tensor["shape"])

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            output: torch.Tensor = self.model(inputs)
            return output

    def encode_response(self, output: torch.Tensor) -> Any:
        return {"outputs": [{"name": "y", "data": output[0].tolist()}]}


if __name__ == "__main__":
    port, best = int(sys.argv[1]), sys.argv[2] == "best"
    # of the settings that were tried on two cores (queue, API servers, workers, batches of 16), the fastest
    server = litserve.LitServer(Mlp(api_path="/api/v1/inference"), accelerator="cpu", fast_queue=best)
    server.run(port=port, host="127.0.0.1", generate_client_file=False, num_api_servers=2 if best else 1)
