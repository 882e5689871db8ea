"""Fixtures that most tests of the service and of the command line share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import Client, served

from app import cli


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """One service for all tests, with limits that tests can exceed."""
    limits = {"max_body_bytes": 1 << 20, "max_json_bytes": 1 << 16, "max_pixels": 1 << 14}
    with served(**limits, max_classes=64, max_images=64) as client:
        client.wait_until_warm()
        yield client


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `seg-loss` with these arguments; returns exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return stop.value.code or 0, output.out, output.err

    return run


@pytest.fixture
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Changes into an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
