"""Architectures against references written out plainly: every head, mask and norm by hand."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from ncn_compute.worker import architectures, libraries
from ncn_compute.worker.model import Model
from ncn_compute.worker.protocol import Array, Load, Spec
from ncn_framework.errors import ModelError
from ncn_framework.tensors import bytes_tensor

TEXTS = [
    "A man is eating food.",
    "",
    "The quick brown fox jumps over the lazy dog, twice.",
    "x" * 40,
    "naïve café 日本",
]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def a_load(directory: Path, architecture: str, inputs: str = "in") -> Load:
    given = [Spec(name, "FP32", (-1,)) for name in inputs.split()]
    return Load(str(directory), "safetensors", architecture, {}, given, [Spec("out", "FP32", (-1,))], [])


def load(directory: Path, architecture: str) -> Model:
    return libraries.build(a_load(directory, architecture))


def texts(values: list[str]) -> list[Array]:
    tensor = bytes_tensor("in", [value.encode() for value in values])
    return [Array("in", "BYTES", tensor.shape, memoryview(tensor.data))]


def floats(values: torch.Tensor) -> list[Array]:
    data = bytearray(struct.pack(f"<{values.numel()}f", *values.flatten().tolist()))
    return [Array("in", "FP32", tuple(values.shape), memoryview(data))]


def single(result: object) -> tuple[int, torch.Tensor]:
    assert isinstance(result, tuple)
    units, (tensor,) = result
    data = torch.frombuffer(bytearray(tensor.data), dtype=torch.float32) if tensor.data else torch.empty(0)
    assert tensor.name == "out"
    return units, data.view(tensor.shape)


def embed_plainly(directory: Path, text: str) -> tuple[int, torch.Tensor]:
    """One text through BERT, head by head, as the paper says it."""
    weights = load_file(directory / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    ids = tokenizer.encode(text).ids

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(6):
        layer = f"encoder.layer.{number}"
        q, k, v = (linear(x, f"{layer}.attention.self.{name}") for name in ("query", "key", "value"))
        heads = []
        for start in range(0, 384, 32):
            part = slice(start, start + 32)
            heads.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(32), -1) @ v[:, part])
        x = norm(
            x + linear(torch.cat(heads, 1), f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm"
        )
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    pooled = x.mean(0)
    return len(ids), pooled / pooled.norm()


def test_embeddings_are_those_of_the_plain_reference(models: Path) -> None:
    model = load(models / "minilm", "bert-embedding")
    units, found = single(model.execute(texts(TEXTS), {}))
    expected = [embed_plainly(models / "minilm", text) for text in TEXTS]
    assert units == sum(count for count, _ in expected)
    assert torch.allclose(found, torch.stack([vector for _, vector in expected]), atol=2e-6)


def test_a_text_has_the_same_embedding_alone_and_among_others(models: Path) -> None:
    model = load(models / "minilm", "bert-embedding")
    many = TEXTS * 9  # more than one batch, of different lengths
    _, together = single(model.execute(texts(many), {}))
    for index in (0, 1, 17, 44):
        _, alone = single(model.execute(texts([many[index]]), {}))
        assert torch.allclose(alone[0], together[index], atol=2e-6)


def test_long_texts_are_cut_and_like_texts_lie_close(models: Path) -> None:
    model = load(models / "minilm", "bert-embedding")
    units, _ = single(model.execute(texts(["word " * 1000]), {}))
    assert units == 256
    _, three = single(
        model.execute(texts(["A man is eating food.", "A man eats a meal.", "The girl is carrying a baby."]), {})
    )
    assert three[0] @ three[1] > 0.7 > 0.3 > three[0] @ three[2]


def test_no_texts_give_no_embeddings(models: Path) -> None:
    units, found = single(load(models / "minilm", "bert-embedding").execute(texts([]), {}))
    assert (units, found.shape) == (0, (0, 384))


def test_text_that_is_not_utf8_raises(models: Path) -> None:
    model = load(models / "minilm", "bert-embedding")
    with pytest.raises(UnicodeDecodeError):
        model.execute([Array("in", "BYTES", (1,), memoryview(b"\1\0\0\0\xff"))], {})


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_mlp_is_linear_layers_with_relu_between(models: Path, rows: int) -> None:
    weights = load_file(models / "mlp/model.safetensors")
    x = torch.linspace(-1, 1, rows * 256).view(rows, 256)
    hidden = torch.clamp(x @ weights["layers.0.weight"].T + weights["layers.0.bias"], min=0)
    expected = hidden @ weights["layers.1.weight"].T + weights["layers.1.bias"]
    units, found = single(load(models / "mlp", "mlp").execute(floats(x), {}))
    assert units == rows
    assert found.shape == (rows, 16)
    assert torch.allclose(found, expected, atol=1e-5)


def test_mlp_takes_any_number_and_size_of_layers(tmp_path: Path) -> None:
    sizes = (3, 5, 4, 2)
    weights = {}
    for index, (width, height) in enumerate(itertools.pairwise(sizes)):
        weights[f"layers.{index}.weight"] = torch.full((height, width), 0.5)
        weights[f"layers.{index}.bias"] = torch.full((height,), float(index))
    save_file(weights, tmp_path / "model.safetensors")
    model = load(tmp_path, "mlp")
    model.warm_up()
    _, found = single(model.execute(floats(torch.ones(1, 3)), {}))
    assert found.tolist() == [[2 * (5 * 0.5 * 1.5 + 1) + 2] * 2]


def test_a_wrong_input_size_raises(models: Path) -> None:
    with pytest.raises(RuntimeError):
        load(models / "mlp", "mlp").execute([Array("in", "FP32", (1, 256), memoryview(bytearray(8)))], {})


def test_what_cannot_be_loaded_is_a_model_error(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'resnet' is unknown; known: bert-embedding, mlp"):
        load(models / "mlp", "resnet")
    with pytest.raises(ModelError, match="cannot be loaded as 'bert-embedding'"):
        load(models / "mlp", "bert-embedding")
    with pytest.raises(ModelError, match=r"layers\.0\.weight"):
        load(models / "minilm", "mlp")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="cannot be loaded as 'mlp'"):
        load(tmp_path, "mlp")
    with pytest.raises(ModelError, match="one input and one output"):
        architectures.build(a_load(tmp_path, "mlp", "a b"))
