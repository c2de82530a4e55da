"""Servers over a stub of a model, where the protocol is what is tested."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from served import Serve, StubEngine, until

if TYPE_CHECKING:
    pass


@pytest.fixture(scope="session")
def nano_card() -> Any:
    from omnialpha.models.checkpoints.folders import resolve

    return resolve(None).card


@pytest.fixture
def engine(nano_card: Any) -> StubEngine:
    return StubEngine(nano_card)


@pytest.fixture
def serve(engine: StubEngine) -> Iterator[Serve]:
    """Start a server with settings, over the stub unless `engines` are given. It ends with the test."""
    from fastapi.testclient import TestClient

    from omnialpha.server.app import create_app
    from omnialpha.server.config import ServerConfig

    with ExitStack() as stack:
        stack.callback(engine.gate.set)

        def start(*, engines: Any = None, resolver: Any = None, **settings: Any) -> TestClient:
            extra = {"resolver": resolver} if resolver else {}
            app = create_app(ServerConfig(**settings), engines or [engine], **extra)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=True))
            until(lambda: client.get("/readyz").status_code == 200)
            stack.callback(engine.gate.set)
            return client

        yield start
