"""The settings of the service: environment variables `SEG_LOSS_*`, with units in their names.

`seg-loss serve --help` lists them with their descriptions. The limits on pixels, images, classes
and upsampled logits also apply to the command line. An empty variable is an unset one.

Others set variables with this prefix too. Kubernetes and the links of Docker describe a service
called seg-loss in `SEG_LOSS_PORT=tcp://10.96.0.12:8000`, `SEG_LOSS_SERVICE_HOST` and more. None of
them is a setting.
"""

import difflib
import os
import re
from collections.abc import Iterable
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "SEG_LOSS_"
MEBIBYTE = 1024 * 1024
_POSITIVE = re.compile(r"[1-9][0-9]{0,8}")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*", re.IGNORECASE)
_SERVICE_VARIABLE = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
_SIMILARITY = 0.7
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


class Settings(BaseSettings):
    """The settings of one service. Keyword arguments replace environment variables."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 chooses a free port."
    )
    log_level: str = Field(
        default="info",
        pattern="^(critical|error|warning|info|debug)$",
        description="critical, error, warning, info or debug.",
    )

    device: str = Field(
        default="auto",
        description="auto, cpu, cuda or cuda:N. auto is the first GPU if the kernels can run "
        "on it, else the CPU.",
    )
    warm_classes: str = Field(
        default="2,19,21,150",
        description="Numbers of classes whose kernels are compiled at the start, with commas "
        "between them, or none: on a GPU before /readyz answers 200, on the CPU the first number "
        "before it.",
    )

    max_body_bytes: int = Field(
        default=1024 * MEBIBYTE, ge=1, description="Largest body, as sent and decompressed."
    )
    max_json_bytes: int = Field(
        default=8 * MEBIBYTE, ge=1, description="Largest JSON body, which costs much more per byte."
    )
    max_bytes_in_flight: int = Field(
        default=4096 * MEBIBYTE,
        ge=1,
        description="Memory for the bodies, upsampling and results of all requests at a time; "
        "beyond it, 503.",
    )
    max_pixels: int = Field(default=1 << 26, ge=1, description="Most pixels of one image.")
    max_images: int = Field(default=4096, ge=1, description="Most images of one request.")
    max_classes: int = Field(default=4096, ge=1, description="Most classes.")
    max_upsampled_logits: int = Field(
        default=1 << 31,
        ge=1,
        description="Most logits of one request with upsampling: images x classes x pixels.",
    )
    max_concurrent_requests: int = Field(
        default=32,
        ge=1,
        description="Most requests that are read, waiting or computed; beyond it, 503.",
    )

    body_timeout_seconds: float = Field(
        default=20.0,
        gt=0,
        description="Time for a body, and for a response, in addition to what "
        "min_body_bytes_per_second allows.",
    )
    min_body_bytes_per_second: int = Field(
        default=MEBIBYTE,
        ge=1,
        description="Lowest rate of a body; below it, 408. Clients that read a response more "
        "slowly lose the connection.",
    )
    compute_timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Longest time from a received body to its response; then 503.",
    )
    retry_after_seconds: int = Field(
        default=1, ge=0, description="Value of Retry-After in responses with status 503."
    )
    drain_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Time for which a stopping service still serves, while /readyz answers 503.",
    )
    shutdown_timeout_seconds: int = Field(
        default=30, ge=1, description="Longest wait for running requests when stopping."
    )

    num_workers: int = Field(
        default=0, ge=0, description="Requests computed at a time; 0 means one for each 4 cores."
    )
    num_threads: int = Field(
        default=0,
        ge=0,
        description="Threads of one computation; 0 divides the cores among the workers.",
    )

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_service_address(cls, port: object) -> object:
        if isinstance(port, str) and _SERVICE_ADDRESS.fullmatch(port):
            return cls.model_fields["port"].default
        return port

    @field_validator("device")
    @classmethod
    def _check_device(cls, name: str) -> str:
        if not _DEVICE.fullmatch(name):
            message = "expected auto, cpu, cuda or cuda:N, got {name}"
            raise PydanticCustomError("device", message, {"name": repr(name)})
        return name

    @field_validator("warm_classes")
    @classmethod
    def _check_warm_classes(cls, text: str) -> str:
        if text == "none":
            return ""
        if text and not all(map(_POSITIVE.fullmatch, text.split(","))):
            message = "expected positive integers with commas between them, or none, got {text}"
            raise PydanticCustomError("warm_classes", message, {"text": repr(text)})
        return text

    @model_validator(mode="after")
    def _check_bytes_in_flight(self) -> Self:
        if self.max_bytes_in_flight < self.max_body_bytes:
            raise ValueError("max_bytes_in_flight must be at least max_body_bytes")
        return self

    @property
    def warm_class_counts(self) -> tuple[int, ...]:
        """The numbers of classes in `warm_classes` that a request may have."""
        counts = map(int, self.warm_classes.split(",") if self.warm_classes else ())
        return tuple(count for count in counts if count <= self.max_classes)

    def transfer_seconds(self, num_bytes: int) -> float:
        """Returns the longest time in which a client may send or receive this many bytes."""
        return self.body_timeout_seconds + num_bytes / self.min_body_bytes_per_second

    @property
    def workers(self) -> int:
        """Number of requests computed at a time."""
        return self.num_workers or max(1, num_cores() // 4)

    @property
    def threads(self) -> int:
        """Number of threads of one computation."""
        return self.num_threads or max(1, num_cores() // self.workers)


def misspelt_variables(names: Iterable[str]) -> list[str]:
    """Returns a sentence for each variable whose name is nearly that of a setting.

    >>> misspelt_variables(["SEG_LOSS_PROT", "SEG_LOSS_SERVICE_PORT", "SEG_LOSS_SOURCES"])
    ['SEG_LOSS_PROT: expected the name of a setting; did you mean SEG_LOSS_PORT?']
    """
    settings = [name.upper() for name in Settings.model_fields]
    sentences = []
    for name in sorted(map(str.upper, names)):
        setting = name.removeprefix(PREFIX)
        if setting == name or setting in settings or _SERVICE_VARIABLE.fullmatch(setting):
            continue
        for similar in difflib.get_close_matches(setting, settings, n=1, cutoff=_SIMILARITY):
            expected = "expected the name of a setting"
            sentences.append(f"{name}: {expected}; did you mean {PREFIX}{similar}?")
    return sentences


def num_cores() -> int:
    """Returns the number of cores that this process may use; containers often limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
