"""The settings of the service: environment variables `SEG_LOSS_*`, with units in their names.

`seg-loss serve --help` lists them with their descriptions. The device and the limits on pixels,
images, classes and upsampled logits also apply to the command line. An empty variable is an unset
one. In a row whose values are names, `title` completes the sentence "expected ...".

Others set variables with this prefix too. Kubernetes and the links of Docker describe a service
called seg-loss in `SEG_LOSS_PORT=tcp://10.96.0.12:8000`, `SEG_LOSS_SERVICE_HOST` and more. None of
them is a setting.
"""

import difflib
import os
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import safe_repr

PREFIX = "SEG_LOSS_"
MEBIBYTE = 1024 * 1024
MIN_PHOTO_SIDE = 256
"""Height and width that the limits on pixels of the network count for narrower photos and tiles."""
_POSITIVE = re.compile(r"[1-9][0-9]{0,8}")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*", re.IGNORECASE)
_SERVICE_VARIABLE = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
_SIMILARITY = 0.7
_FACTORY = re.compile(r"none|[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
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
    log_level: Annotated[
        str,
        StringConstraints(to_lower=True, pattern="^(?i:critical|error|warning|info|debug)$"),
    ] = Field(
        default="info",
        title="critical, error, warning, info or debug",
        description="critical, error, warning, info or debug.",
    )

    device: str = Field(
        default="auto",
        title="auto, cpu, cuda or cuda:N",
        description="auto, cpu, cuda or cuda:N. auto is the first GPU if the kernels can run "
        "on it, else the CPU.",
    )
    warm_classes: str = Field(
        default="2,19,21,150",
        title="positive integers with commas between them, or none",
        description="Numbers of classes whose kernels are compiled at the start, with commas "
        "between them, or none: on a GPU before /readyz answers 200, on the CPU the first number "
        "before it.",
    )

    model: str = Field(
        default="none",
        description="Checkpoint of a network for photos, .safetensors or .caffemodel, or none.",
    )
    network: str = Field(
        default="none",
        title="package.module:callable, or none",
        description="package.module:callable that makes the network of the checkpoint, if it is "
        "not one of FCN's, or none. A name in the checkpoint alone is never imported.",
    )
    max_photo_pixels: int = Field(
        default=1 << 24,
        ge=1,
        description="Most pixels of a photo for the network. A side of less than 256 pixels counts "
        "as 256.",
    )
    tile_side_pixels: int = Field(
        default=1024,
        ge=64,
        description="Height and width of the tiles that larger photos are cut into.",
    )
    tile_overlap_pixels: int = Field(
        default=256,
        ge=0,
        title=f"an integer from 0 to half of {PREFIX}TILE_SIDE_PIXELS",
        description="Pixels that two tiles share. Scores are those of the whole photo if the "
        "network reads at most a quarter of them to each side of a pixel.",
    )
    max_batch_pixels: int = Field(
        default=1 << 20,
        ge=1,
        description="Most pixels of the photos and tiles that the network computes at a time, if "
        "they are several. Its memory grows with them. A side of less than 256 pixels counts as "
        "256.",
    )
    batch_wait_seconds: float = Field(
        default=0.005,
        ge=0,
        description="Longest wait for other photos or tiles of the same size, to compute them "
        "together.",
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
        title=f"an integer of at least {PREFIX}MAX_BODY_BYTES",
        description="Memory for the bodies, pictures, upsampling and results of all requests at a "
        "time; beyond it, 503.",
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
            raise ValueError
        return name

    @field_validator("network")
    @classmethod
    def _check_network(cls, name: str) -> str:
        if not _FACTORY.fullmatch(name):
            raise ValueError
        return name

    @field_validator("tile_overlap_pixels")
    @classmethod
    def _check_overlap(cls, count: int, info: ValidationInfo) -> int:
        if 2 * count > info.data.get("tile_side_pixels", 2 * count):
            raise ValueError
        return count

    @field_validator("warm_classes")
    @classmethod
    def _check_warm_classes(cls, text: str) -> str:
        if text == "none":
            return ""
        if text and not all(map(_POSITIVE.fullmatch, text.split(","))):
            raise ValueError
        return text

    @field_validator("max_bytes_in_flight")
    @classmethod
    def _check_bytes_in_flight(cls, count: int, info: ValidationInfo) -> int:
        if count < info.data.get("max_body_bytes", 0):
            raise ValueError
        return count

    @property
    def factory(self) -> str | None:
        """The callable that makes the network of the checkpoint, or None."""
        return None if self.network == "none" else self.network

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


_SETTINGS_OF_COMMANDS = (
    "device",
    "max_pixels",
    "max_images",
    "max_classes",
    "max_upsampled_logits",
    "max_photo_pixels",
    "tile_side_pixels",
    "tile_overlap_pixels",
    "max_batch_pixels",
)


def for_commands(**flags: Any) -> Settings:
    """Returns the settings of commands that do not serve, which ignore the variables of others."""
    others = {
        name: field.default
        for name, field in Settings.model_fields.items()
        if name not in _SETTINGS_OF_COMMANDS
    }
    return Settings(**{**others, **flags})


def invalid_setting(error: ValidationError) -> tuple[str, str]:
    """Returns the name of the first invalid setting, and what is expected and was got.

    >>> try:
    ...     Settings(port=70000)
    ... except ValidationError as error:
    ...     invalid_setting(error)
    ('port', 'expected an integer from 0 to 65535, got 70000.')
    """
    first = error.errors(include_url=False, include_context=False)[0]
    name, value = str(first["loc"][0]), first["input"]
    got = safe_repr(value) if isinstance(value, str) else f"{value}"
    return name, f"expected {_expected(name)}, got {got}."


def _expected(name: str) -> str:
    """Returns what a setting may be: its title, or its type and bounds."""
    field = Settings.model_fields[name]
    if field.title:
        return field.title
    bounds = {
        bound: getattr(row, bound)
        for row in field.metadata
        for bound in ("ge", "gt", "le")
        if hasattr(row, bound)
    }
    text = "an integer" if field.annotation is int else "a number"
    if "gt" in bounds:
        return f"{text} above {bounds['gt']}"
    if "le" in bounds:
        return f"{text} from {bounds['ge']} to {bounds['le']}"
    return f"{text} of at least {bounds['ge']}"


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


def counted_pixels(height: int, width: int) -> int:
    """Returns the pixels of a photo or tile, as limits of the network count them.

    Networks pad photos, FCN by 100 pixels to each side, so that the time and the memory for a
    narrow one do not depend on its pixels alone.
    """
    return max(height, MIN_PHOTO_SIDE) * max(width, MIN_PHOTO_SIDE)


def num_cores() -> int:
    """Returns the number of cores that this process may use; containers often limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
