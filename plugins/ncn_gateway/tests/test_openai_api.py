"""OpenAI's own client, unchanged but for address and key, against a gateway; and what goes wrong, in its envelope."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from ncn_framework.errors import NoCapacity, PaymentRequired
from ncn_framework.models import FREE, Chunk, InferenceRequest, ModelManifest, NodeInfo
from ncn_framework.payments import VOUCHER, Offer
from ncn_framework.tensors import Tensor, TensorSpec, bytes_tensor, pack_tensors, split_bytes
from ncn_framework.wire.convert import node_record
from ncn_gateway.http import build_app
from ncn_gateway.openai_api import REQUEST_ID, openai_routes

from .fakes import DOMAIN, MANIFEST, NODE, World, served, world

EMBEDDER = ModelManifest(
    "embedder",
    "1",
    "fake",
    "",
    (),
    (TensorSpec("text", "BYTES", (-1,)),),
    (TensorSpec("embedding", "FP32", (-1, 2)),),
)
CHAT = ModelManifest(
    "talker",
    "1",
    "fake",
    "",
    (),
    (TensorSpec("messages", "BYTES", (1,)),),
    (TensorSpec("text", "BYTES", (1,)), TensorSpec("tokens", "INT64", (2,)), TensorSpec("finish", "BYTES", (1,))),
)
HELLO: Any = [{"role": "user", "content": "hello"}]
PIECES = ("Grü".encode()[:3], "Grü".encode()[3:], b" dich")


class Speaker:
    """What the node's models do."""

    def __init__(self, gateway: World) -> None:
        self.node, self.asked = gateway.node, list[InferenceRequest]()

    async def __call__(self, request: InferenceRequest) -> AsyncGenerator[Chunk, None]:
        self.asked.append(request)
        if request.model == EMBEDDER.digest:
            texts = split_bytes(request.inputs[0])
            numbers = [float(n) for i, text in enumerate(texts) for n in (len(text), i)]
            data = struct.pack(f"<{len(numbers)}f", *numbers)
            yield Chunk(1, 7 * len(texts), pack_tensors([Tensor("embedding", "FP32", (len(texts), 2), data)]))
            return
        for i, piece in enumerate(PIECES):
            if i == 1:
                self.node.started.set()
                await self.node.go.wait()
                if self.node.error is not None:
                    raise self.node.error
            tensors = [
                bytes_tensor("text", [piece]),
                Tensor("tokens", "INT64", (2,), struct.pack("<2q", 5, i + 1)),
                bytes_tensor("finish", [b"length" if i == 2 else b""]),
            ]
            yield Chunk(i + 1, 5 + i + 1, pack_tensors(tensors))


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        found.tasks.directory.put(
            node_record(NodeInfo(NODE.address, (MANIFEST, EMBEDDER, CHAT), 4, "strict"), 2, 2**62)
        )
        yield found


@pytest.fixture
def speaker(gateway: World, monkeypatch: pytest.MonkeyPatch) -> Speaker:
    found = Speaker(gateway)
    monkeypatch.setattr(gateway.node, "_execute", found)
    return found


@pytest.fixture
async def url(gateway: World, speaker: Speaker) -> AsyncIterator[str]:
    app = build_app(
        gateway.tasks,
        gateway.info,
        max_body_bytes=4096,
        routes=openai_routes(gateway.tasks, DOMAIN.chain_id, 4096, free=True),
    )
    async with served(app) as address:
        yield f"http://{address}/v1"


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as found:
        yield found


# --- models ---


async def test_models_are_listed_and_found(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["echo", "embedder", "talker"]
    assert (await client.models.retrieve("talker")).owned_by == "ncn"
    with pytest.raises(openai.NotFoundError, match="no connected node serves model 'none'"):
        await client.models.retrieve("none")


# --- embeddings ---


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_texts_become_vectors(client: openai.AsyncOpenAI, encoding: Any) -> None:
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = await client.embeddings.create(model="embedder", input=["four", "sixsix"], **options)
    vectors: list[Any] = [item.embedding for item in answer.data]
    if encoding == "base64":
        assert vectors == ["AACAQAAAAAA=", "AADAQAAAgD8="]
    else:
        assert vectors == [[4.0, 0.0], [6.0, 1.0]]
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("embedder", 14, 14)


async def test_one_text_and_the_models_digest(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="0x" + EMBEDDER.digest.hex(), input="four", dimensions=2)
    assert [item.embedding for item in answer.data] == [[4.0, 0.0]]


async def test_an_answer_names_its_task(client: openai.AsyncOpenAI, gateway: World) -> None:
    raw = await client.embeddings.with_raw_response.create(model="embedder", input="four")
    task = await gateway.tasks.get(bytes.fromhex(raw.headers[REQUEST_ID][2:]))
    assert task.outcome is not None
    assert task.request.payment == FREE


async def test_the_same_key_is_the_same_task(client: openai.AsyncOpenAI, speaker: Speaker) -> None:
    for _ in range(2):
        await client.embeddings.create(model="embedder", input="four", extra_headers={"Idempotency-Key": "once"})
    assert len(speaker.asked) == 1


# --- chat ---


async def test_an_answer_is_whole(client: openai.AsyncOpenAI, speaker: Speaker) -> None:
    answer = await client.chat.completions.create(
        model="talker", messages=HELLO, temperature=0.5, top_p=0.9, seed=7, max_tokens=3, stop=["\n", "END"]
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Grü dich", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 3, 8)
    (request,) = speaker.asked
    assert json.loads(split_bytes(request.inputs[0])[0]) == HELLO
    assert request.parameters == {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "max_tokens": 3,
        "stop": '["\\n", "END"]',
    }


async def test_who_names_no_seed_gets_dice_of_its_own(client: openai.AsyncOpenAI, speaker: Speaker) -> None:
    for temperature in (1.0, 1.0, 0.0):
        await client.chat.completions.create(model="talker", messages=HELLO, temperature=temperature)
    seeds = [request.parameters.get("seed") for request in speaker.asked]
    assert len(set(seeds[:2])) == 2
    assert seeds[2] is None


async def test_parts_of_a_message_are_one_text(client: openai.AsyncOpenAI, speaker: Speaker) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    await client.chat.completions.create(model="talker", messages=parts, max_completion_tokens=9, stop="x")
    assert json.loads(split_bytes(speaker.asked[0].inputs[0])[0]) == [{"role": "user", "content": "ab"}]
    assert speaker.asked[0].parameters == {"max_tokens": 9, "stop": '["x"]'}


async def test_a_stream_comes_piece_by_piece(client: openai.AsyncOpenAI, gateway: World) -> None:
    gateway.node.go.clear()
    stream = await client.chat.completions.create(
        model="talker", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    found: list[ChatCompletionChunk] = []
    async for chunk in stream:
        found.append(chunk)
        gateway.node.go.set()  # the first pieces were there before the rest was made
    deltas = [chunk.choices[0].delta for chunk in found[:-1]]
    assert deltas[0].role == "assistant"
    assert [delta.content for delta in deltas if delta.content] == ["Gr", "ü", " dich"]
    assert found[-2].choices[0].finish_reason == "length"
    assert found[-1].choices == []
    assert found[-1].usage is not None
    assert (found[-1].usage.prompt_tokens, found[-1].usage.completion_tokens) == (5, 3)
    assert len({chunk.id for chunk in found}) == 1


async def test_a_stream_ends_with_done(url: str) -> None:
    async with httpx.AsyncClient() as http:
        form = {"model": "talker", "messages": HELLO, "stream": True}
        answer = await http.post(f"{url}/chat/completions", json=form)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith(
        '"finish_reason":"length","index":0,"logprobs":null}],"usage":null,'
        '"object":"chat.completion.chunk"}\n\ndata: [DONE]\n\n'
    )


async def test_an_error_in_a_stream_is_told(client: openai.AsyncOpenAI, gateway: World) -> None:
    gateway.node.error = NoCapacity("the node is full")
    with pytest.raises(openai.APIError, match="the node is full"):
        async for _ in await client.chat.completions.create(model="talker", messages=HELLO, stream=True):
            pass


async def test_who_hangs_up_ends_the_task(client: openai.AsyncOpenAI, gateway: World) -> None:
    gateway.node.go.clear()
    stream = await client.chat.completions.create(model="talker", messages=HELLO, stream=True)
    task = await gateway.tasks.get(bytes.fromhex(stream.response.headers[REQUEST_ID][2:]))
    await gateway.node.started.wait()
    await stream.close()
    with pytest.raises(Exception, match="cancelled"):
        await task.wait()


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("path", "form", "status", "said"),
    [
        ("embeddings", {"model": "none", "input": "a"}, 404, "no connected node serves model 'none'"),
        ("embeddings", {"model": "talker", "input": "a"}, 400, "makes no embeddings"),
        ("embeddings", {"model": "embedder", "input": []}, 400, "input has 0 texts"),
        ("embeddings", {"model": "embedder", "input": [1, 2]}, 400, "is not what is expected"),
        ("embeddings", {"model": "embedder", "input": "a", "dimensions": 3}, 400, "have 2"),
        ("chat/completions", {"model": "embedder", "messages": HELLO}, 400, "holds no conversations"),
        ("chat/completions", {"model": "talker", "messages": []}, 400, "messages has 0"),
        ("chat/completions", {"model": "talker", "messages": HELLO, "n": 2}, 400, "n is 2"),
        ("chat/completions", {"model": "talker", "messages": HELLO, "tools": [{}]}, 400, "tools is not supported"),
        ("chat/completions", {"model": "talker", "messages": HELLO, "x": "a" * 5000}, 413, "larger than"),
        ("completions", {"model": "talker"}, 404, "is not served here"),
    ],
)
async def test_bad_input_is_told_in_the_envelope(url: str, path: str, form: Any, status: int, said: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/{path}", json=form)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error.keys()) == (
        status,
        "invalid_request_error",
        {"message", "type", "code", "param"},
    )
    assert said in error["message"]


async def test_a_gateway_that_is_paid_says_so(gateway: World, speaker: Speaker) -> None:
    gateway.tasks.settings = gateway.tasks.settings.model_copy(update={"payment_modes": (VOUCHER,)})
    gateway.funds.refusal = PaymentRequired("no deposit", (Offer("exact", 5, bytes(20), bytes(20), 31337, 60),))
    routes = openai_routes(gateway.tasks, DOMAIN.chain_id, 4096, free=False)
    app = build_app(gateway.tasks, gateway.info, max_body_bytes=4096, routes=routes)
    async with (
        served(app) as address,
        openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIStatusError, match="no deposit") as caught:
            await client.embeddings.create(model="embedder", input="a")
    assert (caught.value.status_code, caught.value.type) == (402, "insufficient_quota")
    assert "payment-required" in caught.value.response.headers
    assert not speaker.asked
