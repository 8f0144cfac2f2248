"""The worker: loads libraries, puts up its own walls, loads one model, answers requests until its socket closes."""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections.abc import Sequence

import msgspec

from ncn_compute import landlock, seccomp
from ncn_framework.errors import NcnError
from ncn_framework.tensors import pack_tensors

from . import libraries, protocol
from .cancellations import Cancellations
from .model import Model

__all__ = ["main"]

_BUSY_GAP_S = 250e-6
"""Requests closer to each other than this come from somebody who waits for each answer."""

_SPIN_S = 100e-6
"""Longest time to look for the next request without sleeping."""


def main(arguments: Sequence[str]) -> None:
    """Run the worker.

    Args:
        arguments: the numbers of the control socket's descriptor and of the pipe's that tells cancellations, the
            sandbox's mode, and the model's runtime.
    """
    descriptor, pipe, mode, runtime = int(arguments[0]), int(arguments[1]), arguments[2], arguments[3]
    first, second = sorted((descriptor, pipe))
    os.closerange(3, first)
    os.closerange(first + 1, second)
    os.closerange(second + 1, max(1024, second + 2))
    control = socket.socket(fileno=descriptor)
    cancelled = Cancellations(pipe)
    null = os.open(os.devnull, os.O_RDWR)
    walls = []
    if mode != "disabled" and landlock.restrict():  # before libraries start threads, which would escape it
        walls.append("landlock")

    with libraries.loaded(runtime):
        for standard in (1, 2):  # a model could fill the owner's pipe, or its disk, with what it writes there
            os.dup2(null, standard)
        os.close(null)
        if mode == "strict":
            seccomp.install(seccomp.program(seccomp.Stage.WORKER))
            walls.append("seccomp")
        try:
            control.sendall(protocol.frame(protocol.Started(walls)))
            _serve(control, cancelled)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the owner is gone
    os._exit(0)  # there is nothing to tidy, and libraries take their time


def _serve(control: socket.socket, cancelled: Cancellations) -> None:
    decoder = msgspec.msgpack.Decoder(protocol.OWNER_MESSAGES)
    frames = protocol.FrameBuffer(protocol.MAX_REQUEST_BYTES)
    model: Model | None = None
    gap_s = _BUSY_GAP_S
    while True:
        while (body := frames.next()) is not None:
            message = decoder.decode(body)
            if isinstance(message, protocol.Load):
                try:
                    model = libraries.build(message)
                    reply = protocol.frame(protocol.Loaded())
                except Exception as error:
                    reply = _failure(0, error)
                gc.collect()
                gc.freeze()
                control.sendall(reply)
            elif model is None:
                raise RuntimeError("a request came before the model")
            else:
                control.sendall(_answer(control, cancelled, model, message))
            del message, body
        frames.shrink()
        # requests that follow each other closely are worth a moment's looking: it saves the system's wake-up
        idle_since = time.perf_counter()
        if not frames.receive(control, _SPIN_S if gap_s < _BUSY_GAP_S else 0.0):
            return
        gap_s = time.perf_counter() - idle_since


def _answer(control: socket.socket, cancelled: Cancellations, model: Model, request: protocol.Request) -> bytearray:
    """Execute a request, send all of its pieces but the last, and return the frame that ends it."""
    try:
        results = model.execute(request.inputs, request.parameters)
        if isinstance(results, tuple):
            units, tensors = results
            return protocol.frame(protocol.Piece(request.id, units, pack_tensors(tensors), True))
        for units, tensors in results:
            if request.id in cancelled:
                break
            control.sendall(protocol.frame(protocol.Piece(request.id, units, pack_tensors(tensors), False)))
        return protocol.frame(protocol.Done(request.id))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        return _failure(request.id, error)


def _failure(id_: int, error: Exception) -> bytearray:
    text = str(error) if isinstance(error, NcnError) else f"{type(error).__name__}: {error}"
    return protocol.frame(protocol.Failure(id_, text[: protocol.MAX_MESSAGE]))


if __name__ == "__main__":
    main(sys.argv[1:])
