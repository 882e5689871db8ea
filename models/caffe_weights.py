"""Weights in Caffe's format, `.caffemodel`: read and written, and copied into and out of networks.

A file is one protobuf message, NetParameter of caffe.proto:

    NetParameter        2 layers: V1LayerParameter (before 2015)    100 layer: LayerParameter
    LayerParameter      1 name    2 type    7 blobs: BlobProto
    V1LayerParameter    1 layer (before 2014)    4 name    6 blobs: BlobProto
    BlobProto           5 data: packed float32    8 double_data: packed float64
                        7 shape: BlobShape, or, before 2015, 1 num 2 channels 3 height 4 width
    BlobShape           1 dim: packed int64

Fields that are not in this list are skipped. The schema below declares messages of its own for the
protobuf library, in which packed numbers are bytes. That is the same on the wire, and protobuf
makes no Python object of each number.

The published FCNs have 537 MB, 411 of them in fc6. A file is therefore read one layer at a time,
and the numbers are written straight from the tensors. No length in a file is trusted: each is
compared with the bytes that are there, and the shape of a blob with its numbers, before memory is
allocated.
"""

import io
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from seg_loss import InvalidInput

from .atomic_file import atomic_write

Layers = Mapping[str, Sequence[Tensor]]
"""The blobs of each layer by its name: weight first, then bias."""

_NET_LAYER, _NET_V1_LAYER = 100, 2  # fields of NetParameter
_LAYER_BLOBS, _DATA, _DOUBLE_DATA = 7, 5, 8  # fields of LayerParameter and BlobProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_SKIPPED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10
# Protobuf makes an object of each field, and of 2 bytes. Real networks are far below these numbers.
_MAX_LAYERS = 100_000
_MAX_FIELDS = 10_000
_MAX_BLOBS = 100_000  # of a file: an empty one has 2 bytes, and its tensor more than a thousand
_MAX_AXES = 32  # Caffe's kMaxBlobAxes
_MAX_SHAPE_BYTES = _MAX_AXES * 12
_MAX_BYTES = 2**31 - 2**16  # of the weights; Caffe and protobuf read no message of 2 GiB
_MAX_NUMBERS = 2**31 - 1  # Caffe counts the numbers of a blob in an int
_MAX_NAMES_SHOWN = 20
_BINARY = "A .caffemodel holds the weights, in binary; a .prototxt holds none."
_CAFFE_TYPES = {
    "Conv2d": "Convolution",
    "ConvTranspose2d": "Deconvolution",
    "Linear": "InnerProduct",
    "ConstantScale": "Scale",
}

_SCHEMA = {
    "BlobShape": {"dim": (1, "int64")},
    "BlobProto": {
        "num": (1, "int32"),
        "channels": (2, "int32"),
        "height": (3, "int32"),
        "width": (4, "int32"),
        "data": (5, "bytes"),
        "shape": (7, "bytes"),
        "double_data": (8, "bytes"),
    },
    "LayerParameter": {"name": (1, "bytes"), "type": (2, "bytes"), "blobs": (7, "BlobProto")},
    "V1LayerParameter": {"v0_layer": (1, "bytes"), "name": (4, "bytes"), "blobs": (6, "BlobProto")},
    "NetParameter": {"name": (1, "bytes")},
}
_REPEATED = ("dim", "blobs")
_LEGACY_SHAPE = ("num", "channels", "height", "width")


def _message_classes() -> dict[str, Any]:
    """Returns a class for each message of the schema."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe_weights.proto", package="caffe_weights")
    for name, fields in _SCHEMA.items():
        declared = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = declared.field.add(name=field_name, number=number)
            is_repeated = field_name in _REPEATED
            field.label = kinds.LABEL_REPEATED if is_repeated else kinds.LABEL_OPTIONAL
            if kind in _SCHEMA:
                field.type = kinds.TYPE_MESSAGE
                field.type_name = f".caffe_weights.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
            if field_name == "dim":
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe_weights.{name}"))
        for name in _SCHEMA
    }


_MESSAGES = _message_classes()
_BlobShape = _MESSAGES["BlobShape"]
_BlobProto = _MESSAGES["BlobProto"]
_LayerParameter = _MESSAGES["LayerParameter"]
_V1LayerParameter = _MESSAGES["V1LayerParameter"]
_NetParameter = _MESSAGES["NetParameter"]


def read(path: str | os.PathLike[str]) -> dict[str, list[Tensor]]:
    """Returns the weights in a .caffemodel: the blobs of each layer that has any, by its name.

    Args:
        path: a file of Caffe's current format, or of its V1 format (2014).

    Returns:
        For each layer its blobs in Caffe's order, weight and bias first; float32, or float64 where
        the file holds doubles. A blob of the V1 format has four axes: its bias is (1,1,1,C).

    Raises:
        InvalidInput: if the file is no .caffemodel, is truncated, or has no weights; if the shape
            of a blob does not fit its numbers; or if two layers with weights have one name.
        OSError: if the file cannot be read.
    """
    layers: dict[str, list[Tensor]] = {}
    where = Path(path).name
    with open(path, "rb") as file:
        num_layers = num_blobs = 0
        for number, wire_type, length in _fields(file, where):
            if number not in (_NET_LAYER, _NET_V1_LAYER) or wire_type != _BYTES:
                file.seek(length, io.SEEK_CUR)
                continue
            num_layers += 1
            if num_layers > _MAX_LAYERS:
                raise InvalidInput(where, f"at most {_MAX_LAYERS} layers", "more")
            name, blobs = _parse_layer(file.read(length), where, is_v1=number == _NET_V1_LAYER)
            if not blobs:
                continue
            num_blobs += len(blobs)
            if num_blobs > _MAX_BLOBS:
                raise InvalidInput(where, f"at most {_MAX_BLOBS} blobs", "more")
            if name in layers:
                raise InvalidInput(where, "one layer of each name", f"two layers {_shown(name)}")
            # `pop` frees the bytes of a blob when its tensor is made.
            layers[name] = [blobs.pop(0).tensor() for _ in range(len(blobs))]
    if not layers:
        raise InvalidInput(where, "layers with weights", "none", _BINARY)
    return layers


def write(
    path: str | os.PathLike[str],
    layers: Layers,
    *,
    name: str = "",
    types: Mapping[str, str] | None = None,
) -> None:
    """Writes weights as a .caffemodel of Caffe's current format.

    A file of this name is replaced only when the new one is complete.

    Args:
        path: where to write.
        layers: the blobs of each layer, weight first, then bias. float64 is written as doubles;
            float16 and bfloat16 become float32.
        name: name of the network.
        types: Caffe's types of the layers, such as "Convolution"; Caffe itself goes by the names.

    Raises:
        InvalidInput: if a blob is not floating point or has more than 32 axes, or if all have
            2 GiB or more, which Caffe cannot read.
        OSError: if the file cannot be written.
    """
    types = types or {}
    size = sum(map(_num_bytes, itertools.chain.from_iterable(layers.values())))
    if size > _MAX_BYTES:
        fix = "Save the network as safetensors instead."
        raise InvalidInput(Path(path).name, "less than 2 GiB of weights", f"{size} bytes", fix)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        if name:
            file.write(_NetParameter(name=name.encode()).SerializeToString())
        for layer_name, tensors in layers.items():
            _write_layer(file, layer_name, tensors, types.get(layer_name, ""))


def load(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copies the weights of a .caffemodel into a network.

    The layers of the file and the modules of the network must have the same names, and their
    weights and biases the same shapes. Blobs of the V1 format may have leading axes of 1. A
    deconvolution from C to C classes may have `group: C` in the file, and thus weights [C,1,k,k]:
    they become the diagonal of [C,C,k,k]. Layers without weights, such as pooling, have no part in
    this.

    Args:
        model: a network of `models.fcn`, or another one whose modules have the layers' names.
        path: the .caffemodel.

    Raises:
        InvalidInput: if the file is invalid, or its layers do not fit; the message lists what is
            missing, unexpected, or of another shape. The network is then unchanged.
        OSError: if the file cannot be read.
    """
    copy_into(model, read(path), Path(path).name)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes the weights of a network as a .caffemodel, which `load` and Caffe read.

    The deconvolutions of an FCN have weights [C,C,k,k], as FCN's prototxts, which give no group.

    Args:
        model: a network of `models.fcn`, or another one whose parameters are weights and biases.
        path: where to write; see `write`.

    Raises:
        InvalidInput: if the network has parameters or buffers of other names, or 2 GiB of weights.
        OSError: if the file cannot be written.
    """
    modules = dict(model.named_modules())
    layers = layers_of(model)
    types = {name: _CAFFE_TYPES.get(_torch_type(modules[name]), "") for name in layers}
    blobs = {name: [blob.detach() for blob in tensors] for name, tensors in layers.items()}
    write(path, blobs, name=type(model).__name__, types=types)


def layers_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Returns the weight and the bias of each module that has parameters, by the module's name.

    Raises:
        InvalidInput: if a module has parameters of other names, or saved buffers.
    """
    layers: dict[str, list[nn.Parameter]] = {}
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        extra = {*parameters, *dict(module.named_buffers(recurse=False))} - {"weight", "bias"}
        if extra:
            fix = "Save it as safetensors instead."
            raise InvalidInput(
                name or "model", "weight and bias alone", ", ".join(sorted(extra)), fix
            )
        if parameters:
            layers[name] = [parameters[key] for key in ("weight", "bias") if key in parameters]
    return layers


def copy_into(model: nn.Module, layers: Layers, where: str, *, only: Sequence[str] = ()) -> None:
    """Copies the blobs of layers into the modules of the same names.

    Args:
        model: as for `load`.
        layers: as `read` returns them.
        where: what the layers come from, for messages.
        only: names of the modules that are filled; all by default, which `layers` must then match.

    Raises:
        InvalidInput: as `load`.
    """
    modules = dict(model.named_modules())
    targets = layers_of(model)
    if only:
        targets = {name: blobs for name, blobs in targets.items() if name in only}
    differences = {
        "missing": [_shown(name) for name in targets if name not in layers],
        "unexpected": [_shown(name) for name in layers if name not in targets and not only],
        "of another shape": [
            f"{_shown(name)} {_shapes(layers[name])} instead of {_shapes(blobs)}"
            for name, blobs in targets.items()
            if name in layers and not _fits(layers[name], blobs, modules[name])
        ],
    }
    found = [f"{what}: {listed(names)}" for what, names in differences.items() if names]
    if found:
        expected = f"the weights of {type(model).__name__}"
        raise InvalidInput(where, expected, "layers " + "; ".join(found), _fix_for(layers))
    with torch.no_grad():
        for name, blobs in targets.items():
            for blob, source in zip(blobs, layers[name], strict=True):
                if _is_grouped(source, blob, modules[name]):
                    blob.zero_()
                    blob.diagonal().copy_(source[:, 0].permute(1, 2, 0))
                else:
                    blob.copy_(source.reshape(blob.shape))


@dataclass(frozen=True)
class _Blob:
    """A blob whose shape and numbers fit each other."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes

    def tensor(self) -> Tensor:
        array = np.frombuffer(self.data, self.dtype)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).reshape(self.shape)


def _fields(stream: BinaryIO, where: str) -> Iterator[tuple[int, int, int]]:
    """Yields number, wire type and length of each field of a message; the stream is at its content.

    The caller reads or skips the content, which lies within the stream.
    """
    position = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(position)
    while (tag := _read_varint(stream, where, may_end=True)) is not None:
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _BYTES:
            length = _read_varint(stream, where) or 0
        elif wire_type == _VARINT:
            _read_varint(stream, where)
            length = 0
        else:
            length = _SKIPPED_BYTES.get(wire_type, -1)
        if number == 0 or length < 0:
            got = f"invalid bytes at {stream.tell()}"
            raise InvalidInput(where, "a .caffemodel", got, _BINARY)
        available = size - stream.tell()
        if length > available:
            fix = "The file may be truncated: compare its size with the original."
            got = f"{available} of {length} bytes at {stream.tell()}"
            raise InvalidInput(where, "a complete .caffemodel", got, fix)
        yield number, wire_type, length


def _read_varint(stream: BinaryIO, where: str, *, may_end: bool = False) -> int | None:
    """Returns the next number; None at the end of the stream, if it may end here."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = stream.read(1)
        if not byte:
            if may_end and index == 0:
                return None
            break
        value |= (byte[0] & 0x7F) << (7 * index)
        if byte[0] < 0x80:
            return value
    got = f"invalid or missing bytes at {stream.tell()}"
    raise InvalidInput(where, "a .caffemodel", got, _BINARY)


def _parse_layer(record: bytes, where: str, *, is_v1: bool) -> tuple[str, list[_Blob]]:
    """Returns the name and the blobs of a layer."""
    stream = io.BytesIO(record)
    for count, (_, _, length) in enumerate(_fields(stream, where)):
        if count == _MAX_FIELDS:
            raise InvalidInput(where, f"at most {_MAX_FIELDS} fields in a layer", "more")
        stream.seek(length, io.SEEK_CUR)
    try:
        layer = (_V1LayerParameter if is_v1 else _LayerParameter).FromString(record)
    except DecodeError as error:
        raise InvalidInput(
            where, "a .caffemodel", f"a layer that protobuf rejects: {error}"
        ) from None
    del record, stream  # as large as the layer
    if is_v1 and layer.HasField("v0_layer"):
        fix = "Convert it with Caffe's upgrade_net_proto_binary."
        raise InvalidInput(where, "Caffe's current or V1 format", "its first format, V0", fix)
    try:
        name = layer.name.decode()
    except UnicodeDecodeError:
        raise InvalidInput(where, "names in UTF-8", f"a layer {layer.name[:40]!r}") from None
    return name, [_parse_blob(blob, f"{where}: blob of {_shown(name)}") for blob in layer.blobs]


def _parse_blob(blob: Any, where: str) -> _Blob:
    shape = _shape_of(blob, where)
    data, double_data = blob.data, blob.double_data
    dtype = "<f8" if double_data else "<f4"  # as Caffe, where a blob has both
    numbers = double_data if dtype == "<f8" else data
    count, rest = divmod(len(numbers), np.dtype(dtype).itemsize)
    if rest or count != math.prod(shape):
        expected = f"{math.prod(shape)} packed numbers for the shape {shape}"
        got = f"{len(numbers)} bytes of {'double' if dtype == '<f8' else 'float'}s"
        raise InvalidInput(where, expected, got)
    return _Blob(shape, dtype, numbers)


def _shape_of(blob: Any, where: str) -> tuple[int, ...]:
    if any(blob.HasField(name) for name in _LEGACY_SHAPE):
        shape = tuple(getattr(blob, name) for name in _LEGACY_SHAPE)
    else:
        encoded = blob.shape
        if len(encoded) > _MAX_SHAPE_BYTES:
            raise InvalidInput(
                where, f"at most {_MAX_AXES} axes", f"a shape of {len(encoded)} bytes"
            )
        try:
            shape = tuple(_BlobShape.FromString(encoded).dim)
        except DecodeError:
            raise InvalidInput(where, "a shape", f"the bytes {encoded[:16]!r}") from None
        if not blob.HasField("shape"):
            shape = (0,)  # nothing tells a shape
    if len(shape) > _MAX_AXES:
        raise InvalidInput(where, f"at most {_MAX_AXES} axes", f"{len(shape)}")
    if any(size < 0 for size in shape):
        raise InvalidInput(where, "a shape without negative sizes", f"{shape}")
    if math.prod(max(size, 1) for size in shape) > _MAX_NUMBERS:  # torch overflows at 2^63
        raise InvalidInput(where, f"at most {_MAX_NUMBERS} numbers", f"the shape {shape}")
    return shape


def _write_layer(file: BinaryIO, name: str, tensors: Sequence[Tensor], type_name: str) -> None:
    """Writes a layer as a field of NetParameter; its numbers come straight from the tensors."""
    layer = _LayerParameter(name=name.encode(), type=type_name.encode())
    pieces = [layer.SerializeToString()]
    for tensor in tensors:
        where = f"blob of {_shown(name)}"
        if not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise InvalidInput(where, "a floating point dtype", dtype)
        if tensor.dim() > _MAX_AXES:
            raise InvalidInput(where, f"at most {_MAX_AXES} axes", f"{tensor.dim()}")
        shape = _BlobShape(dim=tensor.shape).SerializeToString()
        values = tensor.detach().cpu().resolve_neg()
        if values.dtype == torch.float64:
            field, numbers = _DOUBLE_DATA, values.numpy().astype("<f8", copy=False)
        else:
            field, numbers = _DATA, values.float().numpy().astype("<f4", copy=False)
        # Fields one behind the other are one message.
        head = _BlobProto(shape=shape).SerializeToString() + _field_header(field, numbers.nbytes)
        pieces.append(_field_header(_LAYER_BLOBS, len(head) + numbers.nbytes) + head)
        pieces.append(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8))
    file.write(_field_header(_NET_LAYER, sum(map(len, pieces))))
    for piece in pieces:
        file.write(piece)


def _num_bytes(tensor: Tensor) -> int:
    """Returns the bytes that the numbers of a tensor have in a file."""
    return tensor.numel() * (8 if tensor.dtype == torch.float64 else 4)


def _field_header(number: int, length: int) -> bytes:
    """Returns what stands before the content of a field of bytes."""
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _torch_type(module: nn.Module) -> str:
    """Returns the name of the most derived class of a module that has a type in Caffe, or ""."""
    names = (cls.__name__ for cls in type(module).__mro__)
    return next((name for name in names if name in _CAFFE_TYPES), "")


def _fits(sources: Sequence[Tensor], blobs: Sequence[Tensor], module: nn.Module) -> bool:
    """Returns whether the blobs of a layer can be copied into those of a module."""
    if len(sources) != len(blobs):
        return False
    return all(
        _significant(source.shape) == _significant(blob.shape) or _is_grouped(source, blob, module)
        for source, blob in zip(sources, blobs, strict=True)
    )


def _is_grouped(source: Tensor, blob: Tensor, module: nn.Module) -> bool:
    """Returns whether a blob is the weight of `group: C`, for a deconvolution without groups."""
    if not isinstance(module, nn.ConvTranspose2d) or blob is not module.weight:
        return False
    return 1 < len(blob) == blob.shape[1] and tuple(source.shape) == (len(blob), 1, *blob.shape[2:])


def _significant(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns a shape without its leading axes of 1."""
    start = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[start:])


def _fix_for(layers: Layers) -> str:
    if "fc8" in layers or ("fc6" in layers and len(_significant(layers["fc6"][0].shape)) == 2):
        return "For VGG16 as a classifier, use models.surgery.load_vgg16."
    return ""


def _shapes(tensors: Sequence[Tensor]) -> str:
    return " and ".join(str(tuple(tensor.shape)) for tensor in tensors)


def _shown(name: str) -> str:
    """Returns a name from a file for a message."""
    return name if name.isidentifier() and len(name) <= 64 else repr(name[:64])


def listed(names: Sequence[str]) -> str:
    """Returns names for a message, the first 20 of many."""
    more = len(names) - _MAX_NAMES_SHOWN
    return ", ".join(names[:_MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
