"""A server with the routes of vLLM 0.32, whose engine is our own sampler on the weights that it loads.

As a script it takes the arguments of `vllm`: fake_vllm.py serve MODEL --port P …
"""

from __future__ import annotations

import atexit
import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safetensors.torch import load_file

from selfdistill.models.load import load_policy, with_adapter
from selfdistill.models.sampler import SamplingOptions, sample


class Refusal(Exception):
    """Of a request, with the status that vLLM gives."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


PROMPT = (5, 6, 7, 8)
LOCK = threading.Lock()  # transformers loads one model at a time
atexit.register(LOCK.acquire)  # a thread that computes in torch as Python ends would abort the process
ROUTES = (
    "/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/collective_rpc",
    "/reset_prefix_cache", "/sleep", "/wake_up",
)  # fmt: skip


class FakeVllm:
    """Runs in a thread. `edit` changes an answer before it is sent; `dies_after` completions it closes every connection
    and takes no more; `waits_s` before each completion, `trickles_s` after each of its first bytes. The route that it
    `fails` has status 500. `calls` are the routes that were called, with their bodies."""

    def __init__(
        self,
        model: Path,
        *,
        port: int = 0,
        version: str = "0.32.0",
        routes: tuple[str, ...] = ROUTES,
        length: int = 4096,
        edit: Callable[[dict[str, Any]], Any] | None = None,
        dies_after: int = 10**9,
        waits_s: float = 0.0,
    ) -> None:
        self.policies = {"policy": load_policy(str(model), device="cpu", dtype="float32", trained=False)}
        self.version, self.routes, self.length, self.edit = version, routes, length, edit
        self.dies_after, self.waits_s, self.dead = dies_after, waits_s, False
        self.trickles_s, self.fails, self.query = 0.0, "", ""  # the last one is of the last call
        self.calls: list[tuple[str, Any]] = []
        self.gate = threading.Event()  # completions wait until it is set
        self.gate.set()
        handler = type("Handler", (_Handler,), {"fake": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def count(self, route: str) -> int:
        return sum(name == route for name, _ in self.calls)

    def answer(self, route: str, body: Any) -> Any:
        if route == self.fails:
            raise Refusal(500, "an error of its own")
        if route in ("/health", "/version", "/openapi.json", "/v1/models"):
            return {
                "/health": None,
                "/version": {"version": self.version},
                "/openapi.json": {"paths": {name: {} for name in self.routes}},
                "/v1/models": {"data": [{"id": "policy", "max_model_len": self.length}]},
            }[route]
        with LOCK:
            self.calls.append((route, body))
            if route == "/v1/load_lora_adapter":
                self.policies[body["lora_name"]] = with_adapter(self.policies["policy"], body["lora_path"])
            elif route == "/v1/unload_lora_adapter":
                if self.policies.pop(body["lora_name"], None) is None:
                    raise Refusal(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
            elif route == "/sleep" and "level=2" in self.query:
                for value in self.policies["policy"].base.parameters():
                    value.data.zero_()
            elif route == "/collective_rpc":
                weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
                self.policies["policy"].base.load_state_dict(weights, strict=False)  # the head is tied
            elif route == "/reset_prefix_cache":
                return {"success": True}
            if route != "/v1/completions":
                return None
            self.dead = self.count(route) > self.dies_after
        time.sleep(self.waits_s)
        self.gate.wait()
        if self.dead:
            raise ConnectionAbortedError
        with LOCK:
            found = self._completed(body)
        return self.edit(found) if self.edit else found

    def _completed(self, body: Any) -> dict[str, Any]:
        options = SamplingOptions(body["max_tokens"], body["temperature"], body["top_p"])
        if body["model"] not in self.policies:
            raise Refusal(404, f"The model `{body['model']}` does not exist.")
        policy, prompt = self.policies[body["model"]], tuple(body["prompt"])
        [done] = sample(policy, [prompt], options, seed=body["seed"], uids=["0"], version=0)
        return {
            "choices": [
                {
                    "prompt_token_ids": body["prompt"],
                    "token_ids": list(done.token_ids),
                    "logprobs": {"token_logprobs": list(done.logprobs)},
                }
            ]
        }


def edited(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """An `edit` that puts these fields into a completion."""
    return lambda found: {"choices": [found["choices"][0] | changes]}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeVllm
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _reply(self, body: Any) -> None:
        try:
            if self.fake.dead:
                raise ConnectionAbortedError
            try:
                self.fake.query = urlsplit(self.path).query
                status, found = 200, self.fake.answer(urlsplit(self.path).path, body)
            except Refusal as refusal:
                status, found = refusal.status, {"error": {"message": str(refusal)}}
            data = b"" if found is None else found.encode() if isinstance(found, str) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data) + (20 if self.fake.trickles_s else 0)))
            self.end_headers()
            for _ in range(20 if self.fake.trickles_s else 0):
                self.wfile.write(b" ")
                time.sleep(self.fake.trickles_s)
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None: ...


if __name__ == "__main__":
    FakeVllm(Path(sys.argv[2]), port=int(sys.argv[sys.argv.index("--port") + 1]))
    threading.Event().wait()
