"""An HTTP server of model folders that breaks off, lies and stalls as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class ModelServer:
    """What is served, and how badly.

    Attributes:
        files: by path, with its leading slash.
        break_after: path to the bytes after which the connection is cut, the next one first.
        ranges: whether parts of files are served.
        statuses: path to the statuses that it answers first.
        redirects: path to where it leads.
        asked: path and Range header of each request.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    break_after: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    statuses: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    encoding: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path, given = handler.path, handler.headers.get("range")
        self.asked.append((path, given))
        if statuses := self.statuses.get(path):
            handler.send_error(statuses.pop(0))
            return
        if path in self.redirects:
            handler.send_response(302)
            handler.send_header("location", self.redirects[path])
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        data = self.files.get(path)
        if data is None:
            handler.send_error(404)
            return
        start = int(given.removeprefix("bytes=").removesuffix("-")) if given and self.ranges else 0
        if start >= len(data) and start:
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.encoding:
            handler.send_header("content-encoding", self.encoding)
        handler.send_header("content-length", str(len(data) - start))
        handler.end_headers()
        breaks = self.break_after.get(path)
        handler.wfile.write(data[start : start + breaks.pop(0)] if breaks else data[start:])
        handler.close_connection = True


@contextmanager
def serving() -> Iterator[ModelServer]:
    """Serve on a free port until the context is left."""
    model_server = ModelServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            model_server.serve(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        model_server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield model_server
        finally:
            server.shutdown()
            thread.join()
