"""Tensors and files that many tests send, with and without upsampling, and the true results.

The truth is `seg_loss.reference` in float64: the dense upsampling, then the loss as defined.
"""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from app.formats import png, safetensors
from app.images.indexed import indexed_picture
from app.images.palettes import PALETTES
from seg_loss import Bilinear, Deconvolution, reference
from seg_loss.upsampling import Upsampling

UPSAMPLINGS: dict[str, Upsampling | None] = {
    "none": None,
    "bilinear": Bilinear(align_corners=False),
    "bilinear_aligned": Bilinear(align_corners=True),
    "fcn": Deconvolution(8, crop=31),
}
"""The values of the option `upsampling`, and what they mean for `make_inputs`."""

UPSAMPLED_SIZE = (20, 30)
"""Height and width that each upsampling can make of scores 6 x 7."""


def make_inputs(upsampling: str = "none", num_images: int = 1) -> dict[str, torch.Tensor]:
    """Logits [N,5,6,7] and labels of a valid request, some of them ignored.

    The labels have 6 x 7 pixels, or `UPSAMPLED_SIZE` if the logits are upsampled.
    """
    if upsampling == "none":
        random = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 5, (num_images, 6, 7), generator=random, dtype=torch.uint8)
        labels[:, 0, :3] = 255
        return {"logits": torch.randn(num_images, 5, 6, 7, generator=random), "labels": labels}
    random = torch.Generator().manual_seed(num_images)
    shape = (num_images, *UPSAMPLED_SIZE)
    labels = torch.randint(0, 5, shape, generator=random, dtype=torch.uint8)
    labels[:, :3, 2:9] = 255
    return {"logits": torch.randn(num_images, 5, 6, 7, generator=random) * 3, "labels": labels}


def make_photo(height: int, width: int) -> torch.Tensor:
    """A grey photo, uint8 [H,W,3]."""
    return torch.full((height, width, 3), 99, dtype=torch.uint8)


def full_size_logits(upsampling: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits, upsampled to the size of the labels if there is an upsampling."""
    method = UPSAMPLINGS[upsampling]
    if method is None:
        return inputs["logits"]
    return reference.upsample(inputs["logits"], tuple(inputs["labels"].shape[1:]), method)


def loss_and_gradient_of(
    upsampling: str, inputs: Mapping[str, torch.Tensor], **options: object
) -> tuple[float, torch.Tensor]:
    """The true loss and its gradient in the logits, float64."""
    logits = inputs["logits"].double().requires_grad_()
    labels = inputs["labels"]
    upsampled = full_size_logits(upsampling, {"logits": logits, "labels": labels})
    loss = reference.spatial_cross_entropy(upsampled, labels, **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    return float(loss.detach()), gradient


def safetensors_file(**tensors: torch.Tensor) -> bytes:
    return b"".join(safetensors.encode(tensors, {}))


def npy_file(array: npt.NDArray[np.generic]) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def label_png(labels: npt.NDArray[np.integer], palette: str = "voc") -> bytes:
    """A PNG of mode P whose samples are the labels [H,W]."""
    return png.encode(indexed_picture(labels, PALETTES[palette]))


def write_inputs(inputs: Mapping[str, torch.Tensor]) -> None:
    """Writes logits.npy and, of the first image, labels.png into the current directory."""
    Path("logits.npy").write_bytes(npy_file(inputs["logits"].numpy()))
    Path("labels.png").write_bytes(label_png(inputs["labels"][0].numpy()))


def png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_bomb() -> bytes:
    """A file of a few bytes that claims to hold 50000 x 50000 pixels."""
    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 16))
    return b"".join(
        (
            png.PNG_SIGNATURE,
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", pixels),
            png_chunk(b"IEND", b""),
        )
    )
