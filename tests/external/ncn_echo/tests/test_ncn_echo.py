from ncn_echo import Echo

from ncn_framework.tensors import TensorSpec, bytes_tensor, split_bytes, unpack_tensors
from ncn_framework.testing.conformance import check_runtime
from ncn_framework.testing.fakes import fake_manifest, fake_request

MANIFEST = fake_manifest(
    name="parrot",
    runtime="echo",
    inputs=(TensorSpec("text", "BYTES", (-1,)),),
    outputs=(TensorSpec("word", "BYTES", (-1,)),),
)


async def test_keeps_the_contract_of_a_runtime() -> None:
    await check_runtime(Echo, MANIFEST, fake_request(MANIFEST))


async def test_answers_word_by_word() -> None:
    request = fake_request(MANIFEST, inputs=(bytes_tensor("text", [b"hello", b"big world"]),))
    outcome = await check_runtime(Echo, MANIFEST, request)
    words = [split_bytes(tensor) for chunk in outcome.chunks for tensor in unpack_tensors(chunk.data)]
    assert words == [[b"hello"], [b"big"], [b"world"]]
    assert outcome.receipt.receipt.units == 3
