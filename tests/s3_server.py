"""A real S3-compatible server on this machine (moto) for tests, which import the fixture."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

START_S = 60


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """Start a server in a process of its own with an empty bucket; yields s3://bucket. Sets the AWS_ variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(port, server)
            import s3fs

            s3fs.S3FileSystem.clear_instance_cache()  # those of another module's server, which has gone
            s3fs.S3FileSystem().mkdir("bucket")
            yield "s3://bucket"
        finally:
            server.kill()
            server.wait()


def _wait(port: int, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "the S3 server did not start"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)
