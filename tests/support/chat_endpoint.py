"""A small OpenAI-compatible endpoint on loopback, which answers as it is told to."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint:
    """What it answers next, and what it was asked.

    Attributes:
        answers: in order: a string is what the model says; a number is a status to fail with; ("slow", seconds) waits
            before it answers; ("raw", bytes) is the whole body; ("drops", seconds) sends a byte at a time,
            ("endless", None) and ("packed", None) more than anybody wants; the last one is repeated.
        requests: path, headers and body of every request.
    """

    def __init__(self, url):
        self.url = url
        self.answers = []
        self.requests = []


def completion(text):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "loopback",
        "choices": [choice],
        "usage": usage,
        "system_fingerprint": "",
    }


@contextmanager
def serve():
    """An endpoint that runs while the block does."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.requests.append((self.path, dict(self.headers), body))
            answer = endpoint.answers.pop(0) if len(endpoint.answers) > 1 else endpoint.answers[0]
            if isinstance(answer, int):
                self.send_error(answer)
                return
            kind, value = answer if isinstance(answer, tuple) else ("text", answer)
            if kind == "slow":
                # Not time.sleep, which tests put something else in place of.
                threading.Event().wait(value)
                value = "[]"
            if kind in ("drops", "endless", "packed"):
                self.send_response(200)
                if kind == "packed":
                    self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                end = time.monotonic() + (value or 5)
                while time.monotonic() < end:
                    self.wfile.write(b" " if kind == "drops" else bytes(2**16))
                    threading.Event().wait(0.05 if kind == "drops" else 0)
                return
            content = value if kind == "raw" else json.dumps(completion(value)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            """Say nothing of clients that have gone."""

    server = Server(("127.0.0.1", 0), Handler)
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
