"""The fixture that most tests of the service share."""

from collections.abc import Iterator

import pytest
from serving import Client, served


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """One service for all tests, with limits low enough to reach."""
    limits = {"max_body_bytes": 1 << 20, "max_json_bytes": 1 << 16, "max_pixels": 1 << 14}
    with served(**limits, max_classes=64, max_images=64) as client:
        client.wait_until_warm()
        yield client
