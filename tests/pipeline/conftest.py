"""Real weights and speech, a limit for files as on a full disk, and a server of S3 for remote folders."""

import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import soxr

from dmlm.pipeline.converters.whisper import WhisperEncoderWeights, load_whisper_weights
from dmlm.pipeline.encoders.weights import find_whisper_weights
from dmlm.pipeline.samples import Waveform

SENTENCES = (
    "Hello there.",
    "The quick brown fox jumps over the lazy dog.",
    "Seven plus two is nine, not ten.",
)


@pytest.fixture(scope="session")
def tiny_en_path() -> Path:
    return find_whisper_weights("whisper:tiny.en")


@pytest.fixture(scope="session")
def tiny_en(tiny_en_path: Path) -> WhisperEncoderWeights:
    return load_whisper_weights(tiny_en_path)


@pytest.fixture(scope="session")
def speech() -> list[Waveform]:
    """Three spoken sentences at 16 kHz, of different lengths."""
    from hibari import Hibari

    voice = Hibari()
    return [
        soxr.resample(np.asarray(voice(sentence, seed=index), np.float32).ravel(), 24_000, 16_000)
        for index, sentence in enumerate(SENTENCES)
    ]


@pytest.fixture
def files_up_to() -> Callable[[int], AbstractContextManager[None]]:
    """Block in which this process can write no more than so many bytes to a file."""

    @contextmanager
    def limit(num_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@dataclass
class S3Server:
    """moto, with a say in every request: what `answer` returns is sent in the place of moto's reply.

    A number is a status; a function changes the body of moto's reply, whose Content-Length stays.
    """

    application: Callable[..., Iterable[bytes]]
    requests: list[tuple[str, str]] = field(default_factory=list)
    answer: Callable[[str, str], int | Callable[[bytes], bytes] | None] = lambda method, name: None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, name = environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/").partition("/")[2]
        self.requests.append((method, name))
        answer = self.answer(method, name)
        if isinstance(answer, int):
            start_response(f"{answer} Trouble", [("Content-Length", "0")])
            return []
        reply = self.application(environ, start_response)
        return reply if answer is None else [answer(b"".join(reply))]

    def names(self, method: str) -> list[str]:
        """Files that requests of one kind were for, in order."""
        return [name for kind, name in self.requests if kind == method and name]


@pytest.fixture(scope="session")
def running_server() -> Iterator[tuple[S3Server, str]]:
    """The server, and its address on a free port of loopback."""
    moto = pytest.importorskip("moto.server")
    serving = pytest.importorskip("werkzeug.serving")
    server = S3Server(moto.DomainDispatcherApplication(moto.create_backend_app))
    http = serving.make_server("127.0.0.1", 0, server, threaded=True, request_handler=moto.MotoRequestHandler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield server, f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()


@pytest.fixture
def server(
    running_server: tuple[S3Server, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[S3Server]:
    """Its bucket `bucket` is empty; mirrors are in a folder of the test."""
    import s3fs

    server, address = running_server
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "canary-of-the-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "DMLM_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()
    s3fs.S3FileSystem(use_listings_cache=False).mkdir("bucket")
    server.requests.clear()
    yield server
    server.answer = lambda method, name: None


@pytest.fixture
def bucket(server: S3Server) -> Any:
    """The bucket itself, as `fsspec` sees it."""
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)
