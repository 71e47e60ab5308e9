"""A real HTTP service on this machine for tests: the embedded digits behind JSON, which can fail, stall and lie."""

from __future__ import annotations

import base64
import io
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import sparring as sp

# What one request may meet instead of an honest answer: it gets the handler and the honest answer.
Trick = Callable[["Handler", Any], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes, and the second would wait for an acknowledgement
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.requests += 1
            self.server.seen.append((self.path, dict(self.headers), body, time.monotonic()))
            trick = self.server.tricks.pop(0) if self.server.tricks else self.server.always
        told = self.server.answer(json.loads(body))
        if trick is not None:
            trick(self, told)
            return
        with self.server.lock:
            self.server.inputs += len(told["predictions"])
        self.reply(told)

    def reply(self, told: Any, status: int = 200, **headers: str) -> None:
        data = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Service(ThreadingHTTPServer):
    """The service and its own count of what it was asked and answered.

    Attributes:
        requests: that arrived, whatever became of them.
        inputs: that were answered honestly.
        seen: path, headers, body and time of each request.
        tricks: what the next requests meet; `always`, what those after them meet.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.model = threading.Lock(), sp.load("digits")
        self.always: Trick | None = None
        self.reset()

    def reset(self) -> None:
        self.requests = self.inputs = 0
        self.seen: list[tuple[str, dict[str, str], bytes, float]] = []
        self.tricks: list[Trick] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that went away is what the tests want."""

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        scores = self.model.query(self.inputs_of(asked)).scores
        assert scores is not None
        rows = scores.double().softmax(1)
        return {
            "predictions": [
                {
                    "scores": row.tolist(),
                    "label": str(int(row.argmax())),
                    "number": int(row.argmax()),
                    "top": [
                        {"label": str(i), "score": float(row[i])} for i in row.argsort(descending=True)[:3].tolist()
                    ],
                }
                for row in rows
            ]
        }

    def inputs_of(self, asked: dict[str, Any]) -> Tensor:
        found = asked["instances"] if "instances" in asked else [asked["image"]]
        pictures = []
        for one in found:
            told = one["image"] if isinstance(one, dict) else one
            if isinstance(told, str):
                stream = io.BytesIO(base64.b64decode(told.rpartition(",")[2]))
                told = np.asarray(Image.open(stream), dtype=np.float64) / 255
            pictures.append(torch.tensor(np.asarray(told), dtype=torch.float32).reshape(1, 8, 8))
        return torch.stack(pictures)


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Service]:
    """The service in a thread of its own, closed at the end; over TLS with a context."""
    server = Service()
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
