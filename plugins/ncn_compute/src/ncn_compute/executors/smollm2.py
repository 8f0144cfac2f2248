"""Chat with a Llama model on a CPU: text in, text out, a piece for each token.

Files: ``model.safetensors`` (FP16, each weight [out, in], rotary pairs interleaved), ``tokenizer.json`` and
``config.json``, which says how the model is shaped. Input ``messages``: BYTES [1], a JSON array of objects with
``role`` ("system", "user" or "assistant") and ``content``. Outputs of each piece: ``text`` BYTES [1]; ``tokens``
INT64 [2], those of the prompt and those of the answer so far; ``finish`` BYTES [1], empty but for the last piece,
where it is "stop" or "length". Unit: a token, of the prompt or of the answer.

Parameters of a request: ``temperature`` (0 to 2, default 0: the likeliest token always), ``top_p`` (above 0, to 1),
``seed`` (int, default 0), ``max_tokens`` (1 to 2048, default 512), ``stop`` (a JSON array of at most 4 strings).
An answer depends on these alone: the same request has the same answer on the same kind of processor, so that who
wants another one gives another seed.

The model: Touvron et al., "Llama 2" (2023); Su et al., "RoFormer" (2021); Ainslie et al., "GQA" (2023).
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

Result = tuple[int, dict[str, Any]]

MOST_TOKENS = 2048
"""Most tokens of an answer."""

_MOST_MESSAGES = 512
_MOST_STOPS = 4
_LONGEST_STOP = 64
_NUCLEUS = 256  # tokens among which the nucleus is looked for before all are sorted


class Options(NamedTuple):
    """A request's parameters, checked."""

    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    stop: tuple[str, ...]


def read_options(parameters: Mapping[str, Any]) -> Options:
    """Return a request's parameters.

    Raises:
        ValueError: one is unknown, or not of the type or within the bounds that it must be.
    """
    known = {"temperature": (0, 2), "top_p": (0, 1), "seed": (-(2**63), 2**63 - 1), "max_tokens": (1, MOST_TOKENS)}
    values: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "max_tokens": 512}
    for name, value in parameters.items():
        if name == "stop":
            continue
        if name not in known:
            raise ValueError(f"parameter {name!r} is unknown; known: {', '.join(known)}, stop")
        whole = name in ("seed", "max_tokens")
        low, high = known[name]
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
            kind = "an int" if whole else "a number"
            raise ValueError(f"parameter {name!r} is {value!r}; it must be {kind} from {low} to {high}")
        values[name] = value
    if values["top_p"] == 0:
        raise ValueError("parameter 'top_p' is 0; it must be above 0; for the likeliest token, set temperature to 0")
    return Options(**values, stop=_read_stop(parameters.get("stop", "[]")))


def _read_stop(text: Any) -> tuple[str, ...]:
    try:
        stop = json.loads(text)
    except (TypeError, ValueError):
        stop = None
    if (
        not isinstance(stop, list)
        or len(stop) > _MOST_STOPS
        or not all(isinstance(one, str) and 0 < len(one) <= _LONGEST_STOP for one in stop)
    ):
        raise ValueError(
            f"parameter 'stop' is {text!r}; it must be a JSON array of at most {_MOST_STOPS} strings of "
            f"1 to {_LONGEST_STOP} characters"
        )
    return tuple(stop)


class Chat:
    """Messages to tokens, and tokens to text.

    Args:
        tokenizer: with byte-level tokens.
        config: names the tokens that begin a message, end it, and end an answer besides.
    """

    def __init__(self, tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # what a message says cannot end it or begin another
        vocabulary = tokenizer.get_vocab()
        self.begin, self.end = vocabulary[config["begin_token"]], vocabulary[config["end_token"]]
        self.ends = {self.end, *(vocabulary[token] for token in config["final_tokens"])}
        self.bytes = _token_bytes(tokenizer)

    def encode(self, data: bytes) -> list[int]:
        """Return the tokens of a conversation, and those that begin its answer.

        The model's own template puts a system message in front where there is none; here nobody pays for a token
        that he did not write.

        Raises:
            ValueError: ``data`` is not a JSON array of messages.
        """
        messages = json.loads(data)
        if not isinstance(messages, list) or not 0 < len(messages) <= _MOST_MESSAGES:
            raise ValueError(f"'messages' must be a JSON array of 1 to {_MOST_MESSAGES} messages")
        turns = [_read_message(number, message) for number, message in enumerate(messages)]
        after = self._ids("\n")
        tokens: list[int] = []
        for role, content in turns:
            tokens += [self.begin, *self._ids(f"{role}\n{content}"), self.end, *after]
        return [*tokens, self.begin, *self._ids("assistant\n")]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _read_message(number: int, message: Any) -> tuple[str, str]:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise ValueError(f"message {number} must be an object with 'role' and 'content', and nothing else")
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"message {number} has role {role!r}; roles are: system, user, assistant")
    if not isinstance(content, str):
        raise ValueError(f"message {number} has content of type {type(content).__name__}; it must be a string")
    return role, content


def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return each token's bytes. Byte-level BPE writes a byte as a printable character (Radford et al., GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    special = tokenizer.get_added_tokens_decoder()
    found = [b""] * tokenizer.get_vocab_size()
    for token, id_ in tokenizer.get_vocab().items():
        if id_ not in special:
            found[id_] = bytes(characters[character] for character in token)
    return found


class TextStream:
    """Bytes of tokens to text, as early as it is certain: never half a character, never part of a stop string.

    Attributes:
        stopped: whether a stop string came; it and what follows are not in the text.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def add(self, data: bytes, final: bool = False) -> str:
        """Return the text that became certain."""
        self._held += self._decoder.decode(data, final)
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        at = len(self._held) - keep
        text, self._held = self._held[:at], self._held[at:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of ``text`` are the first of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def sampler(options: Options) -> Callable[[Tensor], int]:
    """Return a function from logits [vocabulary] to a token.

    Randomness comes from the seed alone, one draw for each token. ``top_p``: Holtzman et al., "The Curious Case of
    Neural Text Degeneration" (2020).
    """
    if options.temperature == 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(options.seed)

    def sample(logits: Tensor) -> int:
        chances = torch.softmax(logits.double() / options.temperature, 0)
        draw = torch.rand((), generator=generator, dtype=torch.float64)
        if options.top_p == 1:
            return _pick(chances, draw)
        ordered, tokens = chances.topk(min(_NUCLEUS, len(chances)))
        if float(ordered.sum()) < options.top_p:
            ordered, tokens = chances.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        ordered = ordered[before < options.top_p]
        return int(tokens[_pick(ordered, draw)])

    return sample


def _pick(chances: Tensor, draw: Tensor) -> int:
    """Return the index on which ``draw`` (0 to 1) falls, where each has a share as wide as its chance."""
    sums = chances.cumsum(0)
    return min(int(torch.searchsorted(sums, draw * sums[-1], right=True)), len(chances) - 1)


class Linear:
    """A linear layer without bias whose weights are FP16 and whose inputs and sums are FP32.

    A token is as fast as its weights come from memory: FP16 takes 16 ms where FP32 took 47, for the same answers.
    INT8, with inputs quantised as they come, takes 13 ms and gives others, often worse.

    Args:
        weight: FP32 [out, in], of values that FP16 holds.
    """

    def __init__(self, weight: Tensor) -> None:
        fast = "fbgemm" in torch.backends.quantized.supported_engines  # on x86-64 alone
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, None) if fast else None
        self._weight = weight if self._packed is None else None

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor
        if self._weight is not None:
            result = functional.linear(x, self._weight)
        else:
            result = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return result


class Layer(NamedTuple):
    """What one layer of the model computes with; joined weights save calls."""

    norm_1: Tensor
    query_key_value: Linear
    output: Linear
    norm_2: Tensor
    gate_up: Linear
    down: Linear


class Llama:
    """The model: tokens to the logits of the next one.

    Args:
        directory: of ``model.safetensors`` and ``config.json``.
    """

    def __init__(self, directory: Path) -> None:
        config = json.loads((directory / "config.json").read_bytes())
        self.heads, self.groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.width, self.context = config["hidden_size"], config["max_position_embeddings"]
        self.eps = config["rms_norm_eps"]
        self.head = self.width // self.heads
        with safe_open(directory / "model.safetensors", "pt") as file:

            def joined(number: int, *names: str) -> Tensor:
                return torch.cat([file.get_tensor(f"model.layers.{number}.{name}.weight").float() for name in names])

            self.embeddings = file.get_tensor("model.embed_tokens.weight")
            self.norm = file.get_tensor("model.norm.weight").float()
            self.layers = [self._layer(joined, number) for number in range(config["num_hidden_layers"])]
        self.logits = Linear(self.embeddings.float())
        steps = config["rope_theta"] ** (-torch.arange(0, self.head, 2, dtype=torch.float64) / self.head)
        angles = torch.arange(self.context, dtype=torch.float64)[:, None] * steps
        self.turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]

    def _layer(self, joined: Callable[..., Tensor], number: int) -> Layer:
        three = joined(number, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        three[: self.width] /= math.sqrt(self.head)  # the scale of attention, once and for all
        return Layer(
            joined(number, "input_layernorm"),
            Linear(three),
            Linear(joined(number, "self_attn.o_proj")),
            joined(number, "post_attention_layernorm"),
            Linear(joined(number, "mlp.gate_proj", "mlp.up_proj")),
            Linear(joined(number, "mlp.down_proj")),
        )

    def cache(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Return room for the keys and the values of ``size`` tokens, for each layer."""
        shape = (self.groups, size, self.head)
        return [(torch.empty(shape), torch.empty(shape)) for _ in self.layers]

    def __call__(self, tokens: list[int], cache: list[tuple[Tensor, Tensor]], start: int) -> Tensor:
        """Return the logits [vocabulary] after ``tokens``, which come after the ``start`` that the cache has."""
        count, stop = len(tokens), start + len(tokens)
        turns = self.turns[start:stop]
        rotated = (self.heads + self.groups) * self.head
        x = self.embeddings[tokens].float()
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            three = layer.query_key_value(functional.rms_norm(x, (self.width,), layer.norm_1, self.eps))
            pairs = torch.view_as_complex(three[:, :rotated].view(count, -1, self.head // 2, 2))
            turned = torch.view_as_real(pairs * turns).view(count, -1, self.head).transpose(0, 1)
            keys[:, start:stop] = turned[self.heads :]
            values[:, start:stop] = three[:, rotated:].view(count, self.groups, self.head).transpose(0, 1)
            mixed = self._attend(turned[: self.heads], keys[:, :stop], values[:, :stop])
            x = x + layer.output(mixed)
            gate, up = layer.gate_up(functional.rms_norm(x, (self.width,), layer.norm_2, self.eps)).chunk(2, 1)
            x = x + layer.down(functional.silu(gate) * up)
        return self.logits(functional.rms_norm(x[-1:], (self.width,), self.norm, self.eps))[0]

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return [count, width]: each query's mix of the values before it. Several queries are the whole prompt."""
        count, each = queries.shape[1], self.heads // self.groups
        if count == 1:
            chances = torch.softmax(torch.bmm(queries.reshape(self.groups, each, self.head), keys.transpose(1, 2)), -1)
            return torch.bmm(chances, values).view(1, self.width)
        keys, values = (part.repeat_interleave(each, 0)[None] for part in (keys, values))
        mixed = functional.scaled_dot_product_attention(queries[None], keys, values, is_causal=True, scale=1.0)
        return mixed[0].transpose(0, 1).reshape(count, self.width)


class Model(NamedTuple):
    """What ``load`` returns."""

    chat: Chat
    llama: Llama


def load(directory: Path, parameters: Mapping[str, Any]) -> Model:
    """Return the model in ``directory``."""
    config = json.loads((directory / "config.json").read_bytes())
    return Model(Chat(Tokenizer.from_file(str(directory / "tokenizer.json")), config), Llama(directory))


def execute(model: Model, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[Result]:
    """Answer a conversation, a piece of text at a time.

    Raises:
        ValueError: the messages or the parameters are not what they must be, or too long.
    """
    options = read_options(parameters)
    chat, llama = model
    prompt = chat.encode(inputs["messages"][0])
    room = llama.context - len(prompt)
    if room < 1:
        raise ValueError(f"the messages are {len(prompt)} tokens; the model's context has {llama.context}")
    most = min(options.max_tokens, room)
    cache = llama.cache(len(prompt) + most)
    sample = sampler(options)
    text = TextStream(options.stop)
    given, start, finish = prompt, 0, ""
    for count in range(1, most + 1):
        token = sample(llama(given, cache, start))
        start += len(given)
        given = [token]
        ended = token in chat.ends
        piece = text.add(b"" if ended else chat.bytes[token], final=ended or count == most)
        if ended or text.stopped:
            finish = "stop"
        elif count == most:
            finish = "length"
        if piece or finish:
            usage = torch.tensor([len(prompt), count])
            yield len(prompt) + count, {"text": [piece], "tokens": usage, "finish": [finish]}
        if finish:
            return


def warm_up(model: Model) -> None:
    """Answer with two tokens."""
    messages = json.dumps([{"role": "user", "content": "Hello"}]).encode()
    for _ in execute(model, {"messages": [messages]}, {"max_tokens": 2}):
        pass
