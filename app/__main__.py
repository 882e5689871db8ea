"""The entry point of `seg-loss`, which `python -m app` runs too.

The packages that the command line needs are the extra `app`. Without them `cli` cannot be imported,
so that this module writes the message.
"""

import sys
from typing import NoReturn

EXTRA = (
    "PIL",
    "fastapi",
    "google",  # protobuf
    "httptools",
    "prometheus_client",
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "python_multipart",
    "rich",
    "safetensors",
    "starlette",
    "typer",
    "uvicorn",
    "zstandard",
)
"""Packages that only the extra `app` installs, for `app` and `models`."""


def main() -> NoReturn:
    """Runs a command and exits; says how to install a missing package of the extra."""
    try:
        from . import cli

        cli.main()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.exit(
            f"seg-loss: the command line needs the package {error.name}, which is not installed. "
            'Run pip install ".[app]" in a checkout of seg-loss.'
        )


if __name__ == "__main__":
    main()
