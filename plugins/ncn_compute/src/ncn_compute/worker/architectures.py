"""Architectures: the models that a safetensors file alone can become, in plain torch.

Each is a class that is built from a model's directory and turns inputs into outputs, and says what its unit is.
A safetensors file holds no code, so what runs here is this module and torch.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Encoding, Tokenizer
from torch.nn import functional

from ncn_framework.errors import ModelError
from ncn_framework.tensors import Tensor, split_bytes

from .model import Model, Result
from .protocol import Array, Load, Scalar

__all__ = ["ARCHITECTURES", "Architecture", "BertEmbedding", "Mlp", "build"]

_WEIGHTS = "model.safetensors"


class Architecture(Model):
    """A loaded model with one input and one output.

    Args:
        directory: of the model's files.
        parameters: the manifest's.
        input_: name of the input tensor.
        output: name of the output tensor.
    """

    def __init__(self, directory: Path, parameters: Mapping[str, Scalar], input_: str, output: str) -> None:
        self.input = input_
        self.output = output
        self.load(directory, parameters)

    @abstractmethod
    def load(self, directory: Path, parameters: Mapping[str, Scalar]) -> None:
        """Read weights and settings; raises ``ModelError``, ``OSError`` or what a parser raises."""


class Mlp(Architecture):
    """Linear layers with ReLU between them: FP32 [n, first width] to FP32 [n, last width].

    Weights: ``layers.N.weight`` [out, in] and ``layers.N.bias`` [out], FP32, N from 0. Unit: a row.
    """

    def load(self, directory: Path, parameters: Mapping[str, Scalar]) -> None:
        weights = load_file(directory / _WEIGHTS)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        while (weight := weights.get(f"layers.{len(self.layers)}.weight")) is not None:
            self.layers.append((weight, weights[f"layers.{len(self.layers)}.bias"]))
        if not self.layers or any(tensor.dtype != torch.float32 for layer in self.layers for tensor in layer):
            raise ModelError(f"{_WEIGHTS} has no 'layers.0.weight', or a layer that is not FP32")
        self.width = self.layers[0][0].shape[1]

    def execute(self, inputs: Sequence[Array], parameters: Mapping[str, Scalar]) -> Result:
        given = inputs[0]
        rows = given.shape[0]
        if rows == 0:
            x = torch.empty(0, self.layers[-1][0].shape[0])
        else:
            x = torch.frombuffer(given.data, dtype=torch.float32).view(rows, self.width)
            last = len(self.layers) - 1
            for index, (weight, bias) in enumerate(self.layers):
                x = functional.linear(x, weight, bias)
                if index < last:
                    x.relu_()
        return rows, [Tensor(self.output, "FP32", (rows, x.shape[1]), x.numpy().tobytes())]

    def warm_up(self) -> None:
        zeros = memoryview(bytearray(4 * self.width))
        self.execute([Array(self.input, "FP32", (1, self.width), zeros)], {})


class BertEmbedding(Architecture):
    """Sentence embeddings by a BERT encoder: BYTES [n] of UTF-8 text to FP32 [n, width].

    The mean of the last layer over a text's tokens, scaled to length 1 (Reimers and Gurevych, "Sentence-BERT",
    2019). Files: ``model.safetensors`` with Hugging Face's names, ``tokenizer.json``, ``config.json``.
    Parameters, of which ``config.json`` may give the last three: ``max_tokens`` (256), ``num_attention_heads``,
    ``num_hidden_layers``, ``layer_norm_eps``. Unit: a token of the input after truncation, special ones included.
    """

    batch = 32
    """Texts that go through the encoder at once."""

    def load(self, directory: Path, parameters: Mapping[str, Scalar]) -> None:
        settings: dict[str, Scalar] = {}
        if (directory / "config.json").exists():
            settings.update(json.loads((directory / "config.json").read_bytes()))
        settings.update(parameters)
        self.heads = int(settings["num_attention_heads"])
        self.eps = float(settings.get("layer_norm_eps", 1e-12))
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length=int(settings.get("max_tokens", 256)))
        self.tokenizer.no_padding()
        weights = load_file(directory / _WEIGHTS)
        self.words = weights["embeddings.word_embeddings.weight"]
        self.width = self.words.shape[1]
        # the type of every token is 0, so its embedding is a constant that the positions can carry
        self.positions = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self.norm = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
        self.blocks = [self._block(weights, n) for n in range(int(settings["num_hidden_layers"]))]

    def _block(self, weights: Mapping[str, torch.Tensor], number: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        prefix = f"encoder.layer.{number}."

        def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

        three = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
        joined = torch.cat([weight for weight, _ in three]), torch.cat([bias for _, bias in three])
        names = ("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense")
        return (joined, *map(pair, names), pair("output.LayerNorm"))

    def execute(self, inputs: Sequence[Array], parameters: Mapping[str, Scalar]) -> Result:
        given = inputs[0]
        texts = [
            element.decode() for element in split_bytes(Tensor(given.name, given.dtype, given.shape, bytes(given.data)))
        ]
        encodings = [self.tokenizer.encode(texts[0])] if len(texts) == 1 else self.tokenizer.encode_batch(texts)
        result = torch.empty(len(texts), self.width)
        # texts of like length together, so that little of a batch is padding
        order = sorted(range(len(texts)), key=lambda index: len(encodings[index].ids))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            result[chosen] = self._embed([encodings[index] for index in chosen])
        units = sum(len(encoding.ids) for encoding in encodings)
        return units, [Tensor(self.output, "FP32", (len(texts), self.width), result.numpy().tobytes())]

    def _embed(self, encodings: Sequence[Encoding]) -> torch.Tensor:
        """Return unit vectors [len(encodings), width]."""
        lengths = [len(encoding.ids) for encoding in encodings]
        longest = max(lengths)
        tokens = torch.tensor([encoding.ids + [0] * (longest - len(encoding.ids)) for encoding in encodings])
        mask = None
        if min(lengths) < longest:
            mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
        attention_mask = None if mask is None else mask[:, None, None, :]
        shape = (self.width,)
        count, head = len(encodings), self.width // self.heads
        x = functional.layer_norm(self.words[tokens] + self.positions[:longest], shape, *self.norm, self.eps)
        for joined, attended, norm_1, widened, narrowed, norm_2 in self.blocks:
            heads = functional.linear(x, *joined).view(count, longest, 3, self.heads, head).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=attention_mask)
            mixed = mixed.transpose(1, 2).reshape(count, longest, self.width)
            x = functional.layer_norm(x + functional.linear(mixed, *attended), shape, *norm_1, self.eps)
            inner = functional.gelu(functional.linear(x, *widened))
            x = functional.layer_norm(x + functional.linear(inner, *narrowed), shape, *norm_2, self.eps)
        pooled = x.mean(dim=1) if mask is None else (x * mask[:, :, None]).sum(dim=1) / torch.tensor(lengths)[:, None]
        return functional.normalize(pooled, dim=1)

    def warm_up(self) -> None:
        data = bytearray(b"\x07\0\0\0warm up")
        self.execute([Array(self.input, "BYTES", (1,), memoryview(data))], {})


ARCHITECTURES: Mapping[str, type[Architecture]] = {"bert-embedding": BertEmbedding, "mlp": Mlp}
"""Known architectures, by the name that a manifest gives."""


def build(load: Load) -> Architecture:
    """Return the loaded model.

    Raises:
        ModelError: the architecture is unknown, or the manifest is not what it needs.
    """
    name = load.architecture
    kind = ARCHITECTURES.get(name)
    if kind is None:
        raise ModelError(f"architecture {name!r} is unknown; known: {', '.join(ARCHITECTURES)}")
    if len(load.inputs) != 1 or len(load.outputs) != 1:
        raise ModelError(f"architecture {name!r} has one input and one output; the manifest has others")
    return kind(Path(load.directory), load.parameters, load.inputs[0].name, load.outputs[0].name)
