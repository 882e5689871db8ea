"""`.caffemodel` files: read, written, loaded; what is malformed, and how it is reported."""

import struct
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from models import caffe_weights
from models.fcn import FCN8s, FCN32s
from seg_loss import InvalidInput
from tests.models.thin import CHANNELS, caffemodel, random_network

# The wire format, written and read without the protobuf library.


def varint(value):
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content % 2**64)
    return varint(number << 3 | 2) + varint(len(content)) + content


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


def shape(*sizes):
    return field(7, field(1, b"".join(varint(size % 2**64) for size in sizes)))


def blob(*sizes, data=None):
    count = 1
    for size in sizes:
        count *= size
    return shape(*sizes) + field(5, floats(*range(count)) if data is None else data)


def legacy(*sizes, values):
    return b"".join(field(i + 1, size) for i, size in enumerate(sizes)) + field(5, floats(*values))


def layer(name, *blobs):
    content = field(1, name) + field(2, b"Convolution")
    return field(100, content + b"".join(field(7, each) for each in blobs))


def v1_layer(name, *blobs):
    return field(2, field(4, name) + b"".join(field(6, each) for each in blobs) + field(5, 4))


def records(data):
    """Yields number and content of each field of a message."""
    position = 0

    def number():
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        tag = number()
        content = number()
        if tag & 7 == 2:
            length, content = content, data[position : position + content]
            assert len(content) == length
            position += length
        yield tag >> 3, content


def read_bytes(content, folder):
    path = folder / "net.caffemodel"
    path.write_bytes(content)
    return caffe_weights.read(path)


def error_of(content, folder):
    with pytest.raises(InvalidInput) as caught:
        read_bytes(content, folder)
    return str(caught.value)


def test_a_layer_of_the_current_format_is_read(tmp_path):
    layers = read_bytes(field(1, b"net") + layer(b"conv", blob(2, 3), blob(2)), tmp_path)
    assert list(layers) == ["conv"]
    weight, bias = layers["conv"]
    assert torch.equal(weight, torch.arange(6.0).reshape(2, 3))
    assert torch.equal(bias, torch.tensor([0.0, 1.0]))
    weight += 1  # the memory is the caller's


def test_a_layer_of_the_v1_format_is_read(tmp_path):
    weight, bias = legacy(1, 1, 2, 3, values=range(6)), legacy(1, 1, 1, 2, values=(7, 8))
    layers = read_bytes(v1_layer(b"fc6", weight, bias) + v1_layer(b"relu6"), tmp_path)
    assert [tuple(each.shape) for each in layers["fc6"]] == [(1, 1, 2, 3), (1, 1, 1, 2)]
    assert layers["fc6"][0].flatten().tolist() == list(range(6))


def test_layers_without_weights_are_left_out(tmp_path):
    assert list(read_bytes(layer(b"relu") + layer(b"conv", blob(1)), tmp_path)) == ["conv"]


def test_unknown_fields_are_skipped(tmp_path):
    unknown = field(3, b"input") + field(4, 224) + b"\x45" + bytes(4) + b"\x49" + bytes(8)
    assert list(read_bytes(unknown + layer(b"conv", blob(1)) + unknown, tmp_path)) == ["conv"]


def test_gradients_in_a_file_are_skipped(tmp_path):
    assert read_bytes(layer(b"c", blob(2) + field(6, floats(5, 6))), tmp_path)["c"][0][1] == 1


def test_doubles_are_read_as_float64(tmp_path):
    content = shape(2) + field(8, struct.pack("<2d", 0.1, 1e300))
    (tensor,) = read_bytes(layer(b"conv", content), tmp_path)["conv"]
    assert tensor.dtype == torch.float64
    assert tensor.tolist() == [0.1, 1e300]


def test_doubles_come_before_floats_as_in_caffe(tmp_path):
    content = shape(1) + field(5, floats(1)) + field(8, struct.pack("<d", 2))
    assert read_bytes(layer(b"conv", content), tmp_path)["conv"][0].tolist() == [2]


def test_a_scalar_has_one_number(tmp_path):
    (tensor,) = read_bytes(layer(b"scale", field(7, b"") + field(5, floats(3))), tmp_path)["scale"]
    assert tensor.shape == ()


def test_what_is_written_is_caffes_layout(tmp_path):
    path = tmp_path / "net.caffemodel"
    layers = {"conv": [torch.arange(6.0).reshape(2, 3), torch.tensor([0.5])]}
    caffe_weights.write(path, layers, name="net", types={"conv": "Convolution"})
    (name_number, name), (layer_number, content) = records(path.read_bytes())
    assert (name_number, name, layer_number) == (1, b"net", 100)
    fields = list(records(content))
    assert fields[:2] == [(1, b"conv"), (2, b"Convolution")]
    assert [number for number, _ in fields] == [1, 2, 7, 7]
    weight, bias = (dict(records(content)) for _, content in fields[2:])
    assert weight == {7: field(1, b"\x02\x03"), 5: floats(*range(6))}
    assert bias == {7: field(1, b"\x01"), 5: floats(0.5)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_survive_bit_for_bit(dtype, tmp_path):
    path = tmp_path / "net.caffemodel"
    special = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45, 3.4e38], dtype=dtype)
    layers = {"a": [special.reshape(1, 2, 3)], "b": [torch.randn(3, dtype=dtype).square()]}
    caffe_weights.write(path, layers)
    found = caffe_weights.read(path)
    integers = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    for name, (tensor,) in layers.items():
        assert found[name][0].dtype == dtype
        assert torch.equal(found[name][0].view(integers), tensor.view(integers))


@pytest.mark.parametrize("sizes", [(), (0,), (2, 0, 3), (1,) * 32])
def test_unusual_shapes_survive(sizes, tmp_path):
    path = tmp_path / "net.caffemodel"
    values = torch.randn(sizes)
    caffe_weights.write(path, {"a": [values]})
    (found,) = caffe_weights.read(path)["a"]
    assert found.shape == values.shape
    assert torch.equal(found, values)


def test_half_precision_is_written_as_float32(tmp_path):
    path = tmp_path / "net.caffemodel"
    values = torch.randn(5).bfloat16()
    caffe_weights.write(path, {"a": [values]})
    assert torch.equal(caffe_weights.read(path)["a"][0], values.float())


def test_views_are_written_in_their_order(tmp_path):
    path = tmp_path / "net.caffemodel"
    values = torch.arange(6.0).reshape(2, 3).T
    negated = torch.tensor([1 + 2j]).conj().imag  # which torch negates when it is read
    caffe_weights.write(path, {"a": [values, negated]})
    found = caffe_weights.read(path)["a"]
    assert torch.equal(found[0], values)
    assert torch.equal(found[1], torch.tensor([-2.0]))


@pytest.mark.parametrize("kind", ["fcn32s", "fcn16s", "fcn8s", "fcn8s-atonce"])
def test_a_saved_network_loads_into_another(kind, tmp_path):
    path = tmp_path / "net.caffemodel"
    network, other = random_network(kind, seed=1), random_network(kind, seed=2)
    caffe_weights.save(network, path)
    caffe_weights.load(other, path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_saved_layers_have_caffes_types(tmp_path):
    path = tmp_path / "net.caffemodel"
    caffe_weights.save(random_network("fcn8s-atonce"), path)
    types = {}
    for number, content in records(path.read_bytes()):
        if number == 100:
            fields = dict(records(content))
            types[fields[1].decode()] = fields[2].decode()
    assert types["conv1_1"] == types["fc6"] == types["score_fr"] == "Convolution"
    assert types["upscore2"] == types["upscore8"] == "Deconvolution"
    assert types["scale_pool3"] == "Scale"


def layers_with_blobs(data):
    """The type and the fields of each blob of the layers with weights, by name."""
    found = {}
    for number, content in records(data):
        fields = list(records(content)) if number == 100 else []
        blobs = [dict(records(blob)) for key, blob in fields if key == 7]
        if blobs:
            found[dict(fields)[1]] = dict(fields)[2], blobs
    return found


@pytest.mark.parametrize("name", ["fcn32s", "fcn8s", "fcn8s-atonce"])
def test_a_saved_network_has_the_fields_that_caffe_writes(name, tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(name))
    network = random_network(name)
    caffe_weights.load(network, path)
    caffe_weights.save(network, path)
    assert layers_with_blobs(path.read_bytes()) == layers_with_blobs(caffemodel(name))


def test_loading_keeps_what_learns(tmp_path):
    path = tmp_path / "net.caffemodel"
    caffe_weights.save(random_network("fcn8s"), path)
    network = FCN8s(5, CHANNELS)
    caffe_weights.load(network, path)
    assert not network.upscore8.weight.requires_grad
    assert network.score_fr.weight.requires_grad


def test_leading_axes_of_one_fit(tmp_path):
    path = tmp_path / "net.caffemodel"
    content = v1_layer(b"0", legacy(1, 1, 2, 3, values=range(6)), legacy(1, 1, 1, 2, values=(7, 8)))
    path.write_bytes(content)
    network = nn.Sequential(nn.Linear(3, 2))
    caffe_weights.load(network, path)
    assert network[0].weight.flatten().tolist() == list(range(6))
    assert network[0].bias.tolist() == [7, 8]


def test_a_deconvolution_with_groups_fits_one_without(tmp_path):
    path = tmp_path / "net.caffemodel"
    weight = torch.randn(3, 1, 4, 4)
    caffe_weights.write(path, {"0": [weight, torch.ones(3)]})
    network = nn.Sequential(nn.ConvTranspose2d(3, 3, 4, stride=2))
    caffe_weights.load(network, path)
    scores = torch.randn(1, 3, 5, 6)
    expected = nn.functional.conv_transpose2d(scores, weight, torch.ones(3), stride=2, groups=3)
    torch.testing.assert_close(network(scores), expected)
    same = nn.Sequential(nn.ConvTranspose2d(3, 3, 4, groups=3))
    caffe_weights.load(same, path)
    assert torch.equal(same[0].weight, weight)
    for other in (nn.ConvTranspose2d(3, 2, 4), nn.Conv2d(3, 3, 4)):
        with pytest.raises(InvalidInput, match="of another shape"):
            caffe_weights.load(nn.Sequential(other), path)


def test_differences_from_the_network_are_listed(tmp_path):
    path = tmp_path / "other.caffemodel"
    layers = caffe_weights.layers_of(random_network("fcn8s"))
    layers["conv1_1"] = [torch.zeros(8, 4, 3, 3), torch.zeros(8)]
    layers["fc7"] = layers["fc7"][:1]
    layers["fc8"] = [torch.zeros(2)]
    del layers["score_pool3"]
    caffe_weights.write(path, layers)
    network = FCN8s(5, CHANNELS)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InvalidInput) as caught:
        caffe_weights.load(network, path)
    assert caught.value.where == "other.caffemodel"
    assert caught.value.expected == "the weights of FCN8s"
    assert caught.value.got == (
        "layers missing: score_pool3; unexpected: fc8; of another shape: "
        "conv1_1 (8, 4, 3, 3) and (8,) instead of (8, 3, 3, 3) and (8,), "
        "fc7 (32, 32, 1, 1) instead of (32, 32, 1, 1) and (32,)"
    )
    assert "models.surgery.load_vgg16" in caught.value.fix
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_long_lists_are_cut(tmp_path):
    path = tmp_path / "other.caffemodel"
    caffe_weights.write(path, {f"layer{i}": [torch.zeros(1)] for i in range(30)})
    with pytest.raises(InvalidInput, match=r"layer19 and 10 more\.$"):
        caffe_weights.load(nn.Sequential(), path)


def test_a_network_with_other_parameters_is_not_saved(tmp_path):
    with pytest.raises(InvalidInput, match="0: expected weight and bias alone, got num_batches"):
        caffe_weights.save(nn.Sequential(nn.BatchNorm2d(2)), tmp_path / "net.caffemodel")
    assert list(tmp_path.iterdir()) == []


def test_integers_are_not_written(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(b"before")
    with pytest.raises(InvalidInput, match="blob of a: expected a floating point dtype, got int64"):
        caffe_weights.write(path, {"a": [torch.zeros(1, dtype=torch.int64)]})
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_too_many_axes_are_not_written(tmp_path):
    with pytest.raises(InvalidInput, match="blob of a: expected at most 32 axes, got 33"):
        caffe_weights.write(tmp_path / "net.caffemodel", {"a": [torch.zeros((1,) * 33)]})


@pytest.mark.parametrize("layers", [{"a": [2**29]}, {"a": [2**28], "b": [2**27, 2**27]}])
def test_a_file_beyond_protobufs_limit_is_not_written(layers, tmp_path):
    number = torch.zeros(1)  # expanded to 2 GiB that take no memory
    huge = {name: [number.expand(size) for size in sizes] for name, sizes in layers.items()}
    message = r"net\.caffemodel: expected less than 2 GiB of weights, got 2147483648 bytes"
    with pytest.raises(InvalidInput, match=message):
        caffe_weights.write(tmp_path / "net.caffemodel", huge)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "net.caffemodel: expected layers with weights, got none. A .caffemodel holds"),
        (layer(b"relu"), "expected layers with weights, got none"),
        (
            b'name: "FCN"\ninput: "data"',
            "net.caffemodel: expected a .caffemodel, got invalid bytes at 1. A .caffemodel holds",
        ),
        (b"\x00\x00", "expected a .caffemodel, got invalid bytes at 2"),
        (b"\x0b", "expected a .caffemodel, got invalid bytes"),  # a group
        (b"\xff" * 12, "expected a .caffemodel, got invalid or missing bytes"),
        (b"\xa2", "expected a .caffemodel, got invalid or missing bytes"),
        (varint(100 << 3 | 2) + varint(10**12), "got 0 of 1000000000000 bytes"),
        (layer(b"c", blob(2))[:-1], "The file may be truncated"),
        (field(100, field(7, b"\x2a\x7f")), "got a layer that protobuf rejects"),
        (field(100, b"\x3a\x7f"), "expected a complete .caffemodel, got 0 of 127 bytes"),
        (layer(b"\xff", blob(1)), "expected names in UTF-8, got a layer b'\\xff'"),
        (layer(b"c", blob(1)) * 2, "expected one layer of each name, got two layers c"),
        (
            layer(b"c", shape(2, 3) + field(5, floats(1))),
            "blob of c: expected 6 packed numbers for the shape (2, 3), got 4 bytes of floats",
        ),
        (layer(b"c", shape(1) + field(5, b"12345")), "got 5 bytes of floats"),
        (layer(b"c", shape(1) + field(8, b"1234")), "got 4 bytes of doubles"),
        (layer(b"c", field(5, floats(1))), "expected 0 packed numbers for the shape (0,)"),
        (layer(b"c", shape(10**9)), "expected 1000000000 packed numbers"),
        (layer(b"c", shape(2**62, 2**62) + field(5, floats(1))), "at most 2147483647 numbers"),
        (layer(b"c", shape(2**40, 2**40, 0)), "expected at most 2147483647 numbers, got"),
        (layer(b"c", shape(-1, -4) + field(5, floats(*range(4)))), "without negative sizes"),
        (v1_layer(b"c", legacy(1, 1, -1, -1, values=(1,))), "without negative sizes"),
        (layer(b"c", shape(*(1,) * 33) + field(5, floats(1))), "at most 32 axes, got 33"),
        (layer(b"c", shape(*(1,) * 999)), "at most 32 axes, got a shape of 1002 bytes"),
        (layer(b"c", field(7, b"\x0a\x7f")), "expected a shape, got the bytes"),
        (field(2, field(1, b"v0")), "expected Caffe's current or V1 format, got its first"),
        (field(100, field(3, b"") * 20_000), "expected at most 10000 fields in a layer"),
        (field(100, b"") * 100_001, "expected at most 100000 layers"),
        (
            b"".join(field(100, field(1, b"%d" % i) + field(7, b"") * 9_999) for i in range(11)),
            "expected at most 100000 blobs",
        ),
    ],
)
def test_a_malformed_file_is_reported(content, message, tmp_path):
    assert message in error_of(content, tmp_path)


def test_numbers_that_are_not_packed_are_reported(tmp_path):
    single = b"\x2d" + floats(1)
    assert "expected 1 packed numbers for the shape (1,), got 0 bytes" in error_of(
        layer(b"c", shape(1) + single), tmp_path
    )


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        caffe_weights.read(tmp_path / "none.caffemodel")


SMALL = layer(b"conv", blob(2, 3), blob(2)) + v1_layer(b"fc", legacy(1, 1, 1, 2, values=(1, 2)))


def test_a_file_cut_anywhere_is_reported_or_ends_between_layers(tmp_path):
    whole = read_bytes(SMALL, tmp_path)
    boundary = len(layer(b"conv", blob(2, 3), blob(2)))
    for end in range(len(SMALL)):
        if end == boundary:
            assert list(read_bytes(SMALL[:end], tmp_path)) == ["conv"]
        else:
            error_of(SMALL[:end], tmp_path)
    assert list(whole) == ["conv", "fc"]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 40),
    tail=st.binary(max_size=20),
)
def test_changed_bytes_give_weights_or_an_error(edits, cut, tail, tmp_path):
    content = bytearray(SMALL)
    for position, value in edits:
        content[position] = value
    try:
        layers = read_bytes(bytes(content[: len(content) - cut]) + tail, tmp_path)
    except InvalidInput:
        return
    assert all(tensor.numel() <= len(content) for blobs in layers.values() for tensor in blobs)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200))
def test_random_bytes_give_weights_or_an_error(content, tmp_path):
    try:
        read_bytes(content, tmp_path)
    except InvalidInput:
        return


_PEAK = """
import sys, torch
from models import caffe_weights
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
layers = caffe_weights.read(sys.argv[1])
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_reading_takes_less_than_twice_the_files_memory(tmp_path):
    path = tmp_path / "net.caffemodel"
    # As in VGG16, one layer has most of the weights.
    sizes = {"conv": 2_000_000, "fc6": 12_000_000, "fc7": 2_000_000}
    caffe_weights.write(path, {name: [torch.zeros(size)] for name, size in sizes.items()})
    command = [sys.executable, "-c", _PEAK, str(path)]
    peak = int(subprocess.check_output(command, text=True))
    assert peak < 2 * path.stat().st_size


def test_fcn_32s_needs_an_fcn_32s(tmp_path):
    path = tmp_path / "net.caffemodel"
    caffe_weights.save(random_network("fcn8s"), path)
    with pytest.raises(InvalidInput, match="missing: upscore; unexpected: upscore2"):
        caffe_weights.load(FCN32s(5, CHANNELS), path)
