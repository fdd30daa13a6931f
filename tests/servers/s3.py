"""S3, as moto plays it."""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from servers.process import Server, free_port, listening, new_directory

# moto looks and then writes, so two conditional writes at once could both hold. On S3 they can't. Its own server closes each
# connection, which takes a third of the time.
_SERVE = """
import io, os, sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import run_wsgi_app

class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def run_wsgi(self):
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\\r\\n\\r\\n")
        environ = self.make_environ()
        size = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(size))
        if self.command in os.environ.get("WITHOUT_CONDITIONS", "").split():
            environ.pop("HTTP_IF_MATCH", None), environ.pop("HTTP_IF_NONE_MATCH", None)
        with turn:
            body, status, headers = run_wsgi_app(application, environ, buffered=True)
        body = b"".join(body)
        self.send_response(int(status[:3]))
        for name, value in headers:
            self.send_header(name, value)
        if "Content-Length" not in headers and status[:3] not in ("204", "304"):
            self.send_header("Content-Length", len(body))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_request(self, *_):
        pass

application, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()
tls = tuple(sys.argv[2:]) or None
make_server(
    "127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=Handler, ssl_context=tls
).serve_forever()
"""


def start(*, tls: tuple[Path, Path] | None = None, **environment: str) -> tuple[Server, str]:
    """A server of the caller's own, which forgets everything when it ends, and the URL of a bucket on it.

    `tls`: a certificate and its key. `WITHOUT_CONDITIONS`: the methods of HTTP for which it knows none, such as `"DELETE"`.
    """
    for package in ("moto", "flask", "flask_cors", "s3fs"):
        if find_spec(package) is None:
            pytest.skip(f"no S3 server: {sys.executable} -m pip install 's3fs' 'moto[s3]' flask flask-cors")
    port = free_port()
    settings = [f"{name}={value}" for name, value in environment.items()]
    command = ["env", *settings, sys.executable, "-W", "ignore", "-c", _SERVE, str(port), *map(str, tls or ())]
    server = Server(command, lambda: listening(port), directory=new_directory())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.setdefault(name, "testing")
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    url = f"s3://bucket/some/prefix?endpoint_url={'https' if tls else 'http'}://127.0.0.1:{port}"
    make_bucket(url)
    return server, url


def make_bucket(url: str) -> None:
    request = urllib.request.Request(f"{url.partition('=')[2]}/bucket", method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request")
    anyone = ssl._create_unverified_context()
    urllib.request.urlopen(request, timeout=30, context=anyone).close()


@cache
def url() -> str:
    """Of a bucket and a prefix on the one server that most tests share, with credentials in the environment."""
    if given := os.environ.get("KVSTORE_TEST_S3_URL"):
        return given
    # In the environment, so that the processes that a test starts find the same one.
    return os.environ.setdefault("KVSTORE_TEST_S3_URL", start()[1])
