"""A local OpenAI-compatible chat server with scripted replies and faults, in a process of its own.

`python tests/openai_server.py SCRIPT.json LOG.jsonl` prints its port. Every request is a line of the log: what was
asked (a digest), and what was done. Faults are drawn per request, from the request's number and the script's seed.
"""

import hashlib
import json
import math
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

SCRIPT = {
    "latency_s": 0.0,
    "faults": {},  # of 429, 500, broken, drop, garbage, status: shares of all requests
    "seed": 0,
    "key": None,  # refused with 401 where another is sent
    "replies": [],  # said in turn, before any other; a number is an HTTP status
    "unreadable": 0.0,  # share of requests whose reply holds no verdict
    "usage": True,
    "logprobs": True,
    "echo": None,  # where the Authorization header is echoed: "reply" or "error"
    "retry_after": "0.01",  # of a 429; None: it does not say
    "models": [],  # names that it knows, one by one and as a list
    "lists": True,  # whether it tells of them by the list alone, as vLLM's does
}


def chance(*parts: object) -> float:
    return int.from_bytes(hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()[:6]) / 2**48


def reply_to(body: dict, unreadable: bool) -> str:
    """What a judge of this prompt says; every verdict is a pure function of the prompt."""
    text, luck = "".join(m["content"] for m in body["messages"]), chance(body["messages"])
    if unreadable:
        return "I cannot say."
    if "[[A>>B]]" in text:
        return f"My final verdict is: [[{('A>>B', 'A>B', 'A=B', 'B>A', 'B>>A')[int(5 * luck)]}]]"
    if "[[C]]" in text:
        return f"Both tried. [[{'ABC'[int(3 * luck)]}]]"
    if "[[rating]]" in text:
        return f"Fine. Rating: [[{1 + int(10 * luck)}]]"
    return f"answer {luck:.6f}"


class ManyAtOnce(ThreadingHTTPServer):
    """Takes all that clients on a busy machine send at once: five waiting connections, the default, are too few."""

    request_queue_size = 128
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script, log, lock, count = SCRIPT, None, threading.Lock(), 0

    def handle(self):
        with suppress(ConnectionError):  # a client that was killed
            super().handle()

    def do_GET(self):
        path, header, script = unquote(self.path), self.headers.get("Authorization", ""), self.script
        with self.lock:
            scripted = script["replies"].pop(0) if script["replies"] else None
        fault = "401" if script["key"] and header != f"Bearer {script['key']}" else scripted
        known, name = script["models"], path.removeprefix("/v1/models/")
        if not fault and path == "/v1/models" and known:
            self._send(200, json.dumps({"object": "list", "data": [{"id": one, "object": "model"} for one in known]}))
        elif not fault and name in known and not script["lists"]:
            self._send(200, json.dumps({"id": name, "object": "model"}))
        else:
            said = f"scripted {fault or 404}" + (f" for {header}" if script["echo"] == "error" else "")
            self._send(int(fault or 404), json.dumps({"error": {"message": said}}))
        with self.lock:
            self.log.write(json.dumps({"asked": path, "fault": fault}) + "\n")
            self.log.flush()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            Handler.count += 1
            number, script = Handler.count, self.script
            scripted = script["replies"].pop(0) if script["replies"] else None
        time.sleep(script["latency_s"])
        drawn, fault = random.Random(f"{script['seed']}/{number}").random(), None
        for name, share in script["faults"].items():
            drawn -= share
            if drawn < 0:
                fault = name
                break
        header = self.headers.get("Authorization", "")
        if script["key"] and header != f"Bearer {script['key']}":
            fault = "401"
        if isinstance(scripted, int):
            fault = str(scripted)
        asked = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
        with self.lock:
            self.log.write(json.dumps({"n": number, "asked": asked, "fault": fault, "body": body}) + "\n")
            self.log.flush()
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if fault and fault.isdigit():
            message = f"scripted {fault}" + (f" for {header}" if script["echo"] == "error" else "")
            self._send(int(fault), json.dumps({"error": {"message": message}}))
            return
        unreadable = chance("unreadable", asked) < script["unreadable"]
        said = scripted if isinstance(scripted, str) else reply_to(body, unreadable)
        said += f" {header}" if script["echo"] == "reply" else ""
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        if body.get("logprobs") and script["logprobs"]:
            choice["logprobs"] = {"content": [self._token(body, unreadable)]}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        if script["usage"]:
            reply["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        text = json.dumps(reply)
        self._send(200, text[: len(text) // 2] if fault == "broken" else "[1]" if fault == "garbage" else text)

    @staticmethod
    def _token(body: dict, unreadable: bool) -> dict:
        p = 0.01 + 0.98 * chance("m", body["messages"])
        both = [("?", -1.0), ("!", -2.0)] if unreadable else [("m", math.log(p)), ("M", math.log(1 - p))]
        top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in both]
        return {**top[0], "top_logprobs": top}

    def _send(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429 and self.script["retry_after"]:
            self.send_header("Retry-After", self.script["retry_after"])
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server:
    """Handle of a running server: its address and what it was asked."""

    def __init__(self, port: int, log: Path):
        self.url, self.log = f"http://127.0.0.1:{port}/v1", log

    @property
    def requests(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def answered(self) -> list[str]:
        """Digests of the requests that got a whole reply."""
        return [r["asked"] for r in self.requests if r["fault"] is None]


@contextmanager
def serving(folder: Path, **script: object):
    """A server with this script until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.json").write_text(json.dumps(script))
    command = [sys.executable, __file__, str(folder / "script.json"), str(folder / "requests.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Server(int(process.stdout.readline()), folder / "requests.jsonl")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    Handler.script = SCRIPT | json.loads(Path(sys.argv[1]).read_text())
    with Path(sys.argv[2]).open("w") as Handler.log:
        server = ManyAtOnce(("127.0.0.1", 0), Handler)
        print(server.server_port, flush=True)
        server.serve_forever()
