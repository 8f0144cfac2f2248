"""What the swarm bounds: sizes in bytes, times in seconds, counts.

A libp2p message of any size and at any time is one that a stranger may send; each bound here is one that the library
lacks or sets too high for a registry of small records.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ASKED_AT_ONCE",
    "DHT_PROTOCOL",
    "KEY_BYTES",
    "MESSAGE_BYTES",
    "QUESTIONS_BYTES",
    "QUESTIONS_OF_PEER",
    "QUESTIONS_OF_PEER_BYTES",
    "QUESTION_BYTES",
    "STORED_RECORDS",
    "STREAM_S",
    "TOPIC_BYTES",
    "VALIDATION_PROTOCOL",
    "VALUE_BYTES",
    "Timing",
]

DHT_PROTOCOL = "/ncn/kad/1.0.0"
"""The DHT's protocol id. One of our own: in ``/ipfs/kad/1.0.0`` every public node would be a peer."""

KEY_BYTES = 50
"""Of a key with its leading slash. FIND_NODE of this library and of others refuses longer ones."""

VALUE_BYTES = 16 * 1024
"""Of a record. A registry's records are some hundred bytes."""

MESSAGE_BYTES = 32 * 1024
"""Of one gossip message."""

TOPIC_BYTES = 128
"""Of a gossip topic's name."""

STORED_RECORDS = 20_000
"""How many records one node keeps for the DHT: 320 MiB at the very most."""

VALIDATION_PROTOCOL = "/ncn/validation/1.0.0"
"""Protocol id of direct streams, by which registries ask each other for validators' signatures."""

QUESTION_BYTES = 16 << 20
"""Of one question or answer on a direct stream: a batch of ten thousand charges has 7 MB."""

QUESTIONS_OF_PEER_BYTES = 2 * QUESTION_BYTES
QUESTIONS_BYTES = 8 * QUESTION_BYTES
"""Of all questions that are answered at once: those of one peer, and those of all."""

QUESTIONS_OF_PEER = 32
"""Questions of one peer that are open at once."""

ASKED_AT_ONCE = 16
"""Questions that are put to one peer at once; half of what it takes, since it counts a question a moment longer."""

STREAM_S = 20.0
"""How long one inbound stream of the DHT may be open. Peers open one for a message or for a few."""


@dataclass(frozen=True)
class Timing:
    """How long the swarm waits, in seconds.

    Attributes:
        rpc_s: for one answer of one peer; a peer that takes longer is left out until a probe succeeds.
        probe_s: between two probes of every connected peer.
        backoff_s: before the first attempt to reach a silent peer again; doubles with each failure.
        backoff_cap_s: the longest such pause, so that a healed partition is noticed within it.
        question_s: for a peer to send its question, and again to take the answer.
        answer_s: for answering a question of a peer, all included.
    """

    rpc_s: float = 3.0
    probe_s: float = 10.0
    backoff_s: float = 2.0
    backoff_cap_s: float = 30.0
    question_s: float = 10.0
    answer_s: float = 30.0
