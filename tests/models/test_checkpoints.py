"""Networks in files: what is saved is loaded, and nothing in a file is trusted."""

import json
import os
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from app.preprocessing import PREPROCESSINGS
from models import caffe_weights, checkpoints
from models.checkpoints import NetworkSpec, build, load_network, save_network
from models.networks import NETWORKS
from models.wrap import ScoreNetwork
from seg_loss import InvalidInput
from tests.models.thin import CHANNELS, NUM_CLASSES, random_network

OWN = "networks_of_the_user:make"
SOURCE = """
from torch import nn
class Plain(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.score = nn.Conv2d(3, num_classes, 4, stride=4)
    def forward(self, image):
        return {"out": self.score(self.norm(image))}
def make(num_classes):
    return Plain(num_classes)
class Complete(Plain):
    num_classes = 4
    def scores(self, image):
        return self(image)["out"], None
def nothing(num_classes):
    return "network"
class Uncounted(Plain):
    scores = Complete.scores
def without_argument():
    return Plain(4)
number = 3
"""
IMAGE = torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def spec_of(name, **changes):
    return NetworkSpec(name, NUM_CLASSES, CHANNELS, **changes)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's, which can be imported and is not."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "networks_of_the_user.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "networks_of_the_user", raising=False)
    yield
    sys.modules.pop("networks_of_the_user", None)


def rewritten(path, changes, tensors=None):
    """Writes a checkpoint again, with other metadata or tensors; None leaves out a key."""
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **changes}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found |= tensors or {}
    save_file(
        {name: tensor for name, tensor in found.items() if tensor is not None},
        path,
        {key: value for key, value in metadata.items() if value is not None},
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_is_loaded_bit_for_bit(name, tmp_path):
    path = tmp_path / "net.safetensors"
    network = random_network(name).train()
    spec = spec_of(name, preprocessing="imagenet", class_names=("road", "sky", "", "ü", "e"))
    save_network(path, network, spec)
    loaded, found = load_network(path)
    assert found == spec
    assert not loaded.training
    assert type(loaded) is NETWORKS[name]
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    learns = [parameter.requires_grad for parameter in network.parameters()]
    assert [parameter.requires_grad for parameter in loaded.parameters()] == learns
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), network.eval()(IMAGE))


def test_the_published_width_is_the_default():
    with torch.device("meta"):
        assert build(NetworkSpec("fcn8s", 21)).channels == (64, 128, 256, 512, 512, 4096)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_caffemodel_is_recognized_by_its_layers(name, tmp_path):
    path = tmp_path / "net.caffemodel"
    network = random_network(name)
    caffe_weights.save(network, path)
    loaded, spec = load_network(path)
    assert spec == spec_of(name)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), network(IMAGE))
    assert load_network(path, network=name)[1] == spec
    with pytest.raises(InvalidInput, match=r"net\.caffemodel: expected the network other, got fcn"):
        load_network(path, network="other")


def grouped(network):
    """The layers of a network as Caffe writes them where deconvolutions have `group: C`."""
    return {
        name: [blob.diagonal().permute(2, 0, 1).unsqueeze(1) if "up" in name else blob.detach()
               for blob in blobs]
        for name, blobs in caffe_weights.layers_of(network).items()
    }  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_caffemodel_may_have_deconvolutions_with_groups(name, tmp_path):
    path = tmp_path / "net.caffemodel"
    network = random_network(name)
    caffe_weights.write(path, grouped(network))
    loaded, spec = load_network(path)
    assert spec == spec_of(name)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key


def test_deconvolutions_with_groups_do_not_ask_for_any_memory(tmp_path):
    path = tmp_path / "net.caffemodel"
    layers = grouped(random_network("fcn8s", channels=(1,) * 6))
    num_classes = 10_000
    for name, blobs in layers.items():
        if "up" in name:
            layers[name] = [torch.zeros(num_classes, *blobs[0].shape[1:])]
        elif "score" in name:
            layers[name] = [torch.zeros(num_classes, 1, 1, 1), torch.zeros(num_classes)]
    caffe_weights.write(path, layers)
    with pytest.raises(InvalidInput, match=r"upscore2: expected at most 268435456 numbers without"):
        load_network(path)


def test_a_caffemodel_with_empty_layers_is_reported(tmp_path):
    path = tmp_path / "net.caffemodel"
    layers = caffe_weights.layers_of(random_network("fcn8s"))
    caffe_weights.write(path, {**layers, "fc6": [torch.zeros(0, 16, 7, 7), torch.zeros(0)]})
    with pytest.raises(InvalidInput, match=r"net\.caffemodel: channels: expected six positive"):
        load_network(path)


def test_a_classifier_is_no_network(tmp_path):
    path = tmp_path / "vgg16.caffemodel"
    layers = caffe_weights.layers_of(random_network("fcn32s"))
    caffe_weights.write(path, {name: layers[name] for name in ("conv1_1", "fc6", "fc7")})
    message = r"expected the weights of one of fcn32s, .*, got layers conv1_1, fc6, fc7\. VGG16"
    with pytest.raises(InvalidInput, match=message):
        load_network(path)


def test_a_caffemodel_without_a_layer_is_reported(tmp_path):
    path = tmp_path / "net.caffemodel"
    layers = caffe_weights.layers_of(random_network("fcn8s"))
    del layers["conv4_2"]
    caffe_weights.write(path, layers)
    with pytest.raises(
        InvalidInput, match=r"net.caffemodel: conv4_2: expected weights .*, got none"
    ):
        load_network(path)


def test_the_suffix_of_a_file_may_be_in_capitals(tmp_path):
    save_network(tmp_path / "net.SafeTensors", random_network("fcn32s"), spec_of("fcn32s"))
    assert load_network(tmp_path / "net.SafeTensors")[1] == spec_of("fcn32s")


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save_network(path, random_network("fcn32s"), spec_of("fcn32s"))
    before = path.read_bytes()

    def full_disk(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise checkpoints.SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match=r"net\.safetensors: No space left on device"):
        save_network(path, random_network("fcn32s", seed=1), spec_of("fcn32s"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_metadata_are_plain_strings(tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(path, random_network("fcn8s"), spec_of("fcn8s", class_names=tuple("abcde")))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt",
        "network": "fcn8s",
        "num_classes": "5",
        "preprocessing": "caffe",
        "channels": json.dumps(CHANNELS),
        "class_names": '["a", "b", "c", "d", "e"]',
    }


@pytest.mark.usefixtures("own_module")
def test_a_network_of_the_users_is_built_saved_and_loaded(tmp_path):
    path = tmp_path / "own.safetensors"
    spec = NetworkSpec(OWN, 4, preprocessing="imagenet")
    network = build(spec)
    assert isinstance(network, ScoreNetwork)
    network.train()(IMAGE)  # changes the running means
    save_network(path, network.eval(), spec)
    loaded, found = load_network(path, network=OWN)
    assert found == spec
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), network(IMAGE))


@pytest.mark.usefixtures("own_module")
def test_a_network_with_scores_is_not_wrapped():
    network = build(NetworkSpec("networks_of_the_user:Complete", 4))
    assert type(network).__name__ == "Complete"
    assert build(NetworkSpec("networks_of_the_user:Uncounted", 3)).num_classes == 3


@pytest.mark.usefixtures("own_module")
def test_a_network_with_scores_of_other_classes_is_reported():
    message = "network: expected num_classes 5, got 4 of Complete"
    with pytest.raises(InvalidInput, match=message):
        build(NetworkSpec("networks_of_the_user:Complete", 5))


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("wanted", [None, "fcn8s", "networks_of_the_user:Complete"])
def test_a_file_alone_never_makes_a_module_imported(wanted, tmp_path):
    path = tmp_path / "own.safetensors"
    spec = NetworkSpec(OWN, 4)
    save_network(path, build(spec), spec)
    del sys.modules["networks_of_the_user"]
    with pytest.raises(InvalidInput) as caught:
        load_network(path, network=wanted)
    assert "networks_of_the_user" not in sys.modules
    assert caught.value.got == OWN
    if wanted is None:
        assert caught.value.fix == f"If you trust that code, name it yourself: network={OWN!r}."


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "networks_of_the_user:missing",
            "expected an importable network, got networks_of_the_user",
        ),
        ("no_such_module_here:make", "No module named 'no_such_module_here'. The module must be"),
        ("networks_of_the_user:number", "expected a callable that returns a network, got"),
        (
            "networks_of_the_user:without_argument",
            "expected a callable that takes num_classes alone, got networks_of_the_user",
        ),
        ("networks_of_the_user:nothing", r"expected a torch\.nn\.Module, got str from networks_of"),
    ],
)
def test_a_network_that_cannot_be_built_is_reported(name, message):
    with pytest.raises(InvalidInput, match=message):
        build(NetworkSpec(name, 4))


@pytest.mark.usefixtures("own_module")
def test_sizes_in_a_file_of_the_users_network_are_not_trusted(tmp_path):
    path = tmp_path / "own.safetensors"
    spec = NetworkSpec(OWN, 4)
    save_network(path, build(spec), spec)
    rewritten(path, {"num_classes": "1000000000"})
    with pytest.raises(
        InvalidInput, match="a tensor with 1000000000 classes, as it says, got none"
    ):
        load_network(path, network=OWN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": None}, "expected the metadata 'network', got .* Write it with models.checkp"),
        ({"num_classes": None}, "expected the metadata 'num_classes'"),
        ({"preprocessing": None}, "expected the metadata 'preprocessing'"),
        ({"network": "fcn4s"}, "network: expected one of fcn32s, .*, got 'fcn4s'"),
        (
            {"network": "os:system", "channels": None},
            "expected a network of this package, got os:system",
        ),
        ({"network": "os.system('true')"}, "network: expected one of fcn32s"),
        (
            {"network": "fcn16s"},
            "expected fcn16s with 5 classes .*, as it says, got fcn8s with 5 c",
        ),
        ({"num_classes": "five"}, "expected valid metadata, got invalid literal"),
        ({"num_classes": "1" * 5000}, "expected valid metadata, got Exceeds the limit"),
        ({"num_classes": "-5"}, "num_classes: expected an integer of at least 1, got -5"),
        (
            {"num_classes": "1000000000"},
            "1000000000 classes .*, as it says, got fcn8s with 5 classes",
        ),
        ({"channels": "[8, 16"}, "expected valid metadata, got Expecting"),
        ({"channels": "[" * 100_000}, "expected valid metadata, got maximum recursion|Expecting"),
        ({"channels": "[8, 16]"}, "channels: expected six positive integers"),
        ({"channels": "[8, 16, 16, 16, 16, 1e9]"}, "channels: expected six positive integers"),
        ({"channels": '{"a": 1}'}, "channels: expected six positive integers"),
        ({"channels": "[8, 16, 16, 16, 16, 1000000000]"}, "as it says, got fcn8s with 5 classes"),
        ({"channels": None}, r"channels \(64, 128, 256, 512, 512, 4096\), as it says"),
        ({"preprocessing": "none"}, "preprocessing: expected one of caffe, imagenet, got 'none'"),
        ({"class_names": '["a"]'}, "class_names: expected 5 names, or none, got 1"),
        ({"class_names": "[1, 2, 3, 4, 5]"}, "class_names: expected a tuple of printable strings"),
        ({"class_names": '"abcde"'}, "class_names: expected a tuple of printable strings"),
        (
            {"class_names": r'["\ud800", "\u001b[2J", "c", "d", "e"]'},
            "class_names: expected a tuple of printable strings",
        ),
    ],
)
def test_false_metadata_are_reported(changes, message, tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(path, random_network("fcn8s"), spec_of("fcn8s"))
    rewritten(path, changes)
    with pytest.raises(InvalidInput, match=rf"net\.safetensors: .*({message})"):
        load_network(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"conv1_2.bias": None}, "the weights of FCN8s, got tensors missing: conv1_2.bias"),
        ({"conv4_2.weight": None}, "conv4_2: expected weights .*, got none"),
        ({"fc8.bias": torch.zeros(1)}, "tensors unexpected: fc8.bias"),
        ({"fc7.bias": torch.zeros(3)}, r"of another shape: fc7.bias \(3,\) instead of \(32,\)"),
        ({"fc7.bias": torch.zeros(32, dtype=torch.int32)}, "fc7.bias: expected float32, got int32"),
        (
            {"conv3_2.weight": torch.zeros(16, 0, 3, 3)},
            r"conv3_2: expected weights .*, got \(16, 0",
        ),
        ({"conv3_1.weight": torch.zeros(0, 16, 3, 3)}, "channels: expected six positive integers"),
        (
            {"upscore2.weight": torch.zeros(5, 1, 4, 4)},
            r"upscore2: expected 5 classes to 5, got \(5",
        ),
        ({"score_fr.weight": torch.zeros(5)}, "expected the weights of one of fcn32s"),
    ],
)
def test_weights_that_do_not_fit_are_reported(tensors, message, tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(path, random_network("fcn8s"), spec_of("fcn8s"))
    rewritten(path, {}, tensors)
    with pytest.raises(InvalidInput, match=message):
        load_network(path)


def test_other_floating_point_weights_are_converted(tmp_path):
    path = tmp_path / "net.safetensors"
    network = random_network("fcn8s").double()
    save_network(path, network, spec_of("fcn8s"))
    loaded, _ = load_network(path)
    assert torch.equal(loaded.fc6.weight, network.fc6.weight.float())


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 100, b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_safetensors_is_reported(content, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"net\.safetensors: expected a safetensors file, got"):
        load_network(path)


def test_a_truncated_file_is_reported(tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(path, random_network("fcn32s"), spec_of("fcn32s"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidInput, match=r"net\.safetensors: expected a safetensors file, got"):
        load_network(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("suffix", ["safetensors", "caffemodel"])
def test_a_pipe_or_device_is_not_opened(suffix, tmp_path):
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"device.{suffix}").symlink_to(os.devnull)
    for name in ("pipe", "device"):
        with pytest.raises(InvalidInput, match=f"checkpoint: expected a regular file, got {name}"):
            load_network(tmp_path / f"{name}.{suffix}")


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.ckpt", "net"])
def test_a_pickled_checkpoint_is_not_read(name, tmp_path):
    path = tmp_path / name
    torch.save(random_network("fcn32s").state_dict(), path)
    with pytest.raises(
        InvalidInput, match=r"a \.safetensors or \.caffemodel file, got net.*Pickled"
    ):
        load_network(path)


@pytest.mark.parametrize("name", ["none.safetensors", "none.caffemodel"])
def test_a_missing_file_is_an_os_error(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=name):
        load_network(tmp_path / name)


def test_another_network_is_not_saved_under_a_false_name(tmp_path):
    path = tmp_path / "net.safetensors"
    for network, spec in (
        (random_network("fcn8s"), spec_of("fcn16s")),
        (random_network("fcn8s"), NetworkSpec("fcn8s", 6, CHANNELS)),
        (random_network("fcn8s"), NetworkSpec("fcn8s", NUM_CLASSES)),
        (nn.Sequential(random_network("fcn8s")), spec_of("fcn8s")),
        (ScoreNetwork(nn.Conv2d(3, 5, 1), 5), NetworkSpec(OWN, 4)),
        (nn.Conv2d(3, 4, 1), NetworkSpec(OWN, 4)),
    ):
        with pytest.raises(InvalidInput, match="model: expected"):
            save_network(path, network, spec)
    assert list(tmp_path.iterdir()) == []


def test_state_that_is_no_tensor_is_not_saved(tmp_path):
    class Odd(ScoreNetwork):
        def get_extra_state(self):
            return "text"

    network = Odd(nn.Conv2d(3, 4, 1), 4)
    message = "model: expected tensors as its state, got _extra_state"
    with pytest.raises(InvalidInput, match=message):
        save_network(tmp_path / "net.safetensors", network, NetworkSpec(OWN, 4))


def test_tied_weights_are_saved_twice(tmp_path):
    module = nn.ModuleDict({"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1)})
    module["b"].weight = module["a"].weight
    path = tmp_path / "net.safetensors"
    save_network(path, ScoreNetwork(module, 4), NetworkSpec(OWN, 4))
    with safe_open(path, framework="pt") as file:
        a, b = (file.get_tensor(f"module.{name}.weight") for name in "ab")
        assert torch.equal(a, b)


def compiled(network):
    return torch.compile(network, backend="eager")


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, "expected a network with scores, got DataParallel. Save the module ins"),
        (compiled, "expected the network itself, got a compiled module. Save its _orig_mod"),
    ],
)
def test_a_network_is_not_saved_under_the_names_of_its_wrapper(wrap, message, tmp_path):
    network = wrap(ScoreNetwork(nn.Conv2d(3, 4, 1), 4))
    with pytest.raises(InvalidInput, match=f"model: {message}"):
        save_network(tmp_path / "net.safetensors", network, NetworkSpec(OWN, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fcn8s", 0), "num_classes: expected an integer of at least 1, got 0"),
        ((["fcn8s"], 2), "network: expected one of"),
        (("FCN8s", 2), "network: expected one of fcn32s, fcn16s, fcn8s, fcn8s-atonce, or"),
        (
            ("module.py:make", 2, CHANNELS),
            "channels: expected six positive integers, for a network",
        ),
        (("a:b:c", 2), "network: expected one of"),
        ((":make", 2), "network: expected one of"),
        (("a.b", 2), "network: expected one of"),
        (("fcn8s", 2, (1, 2)), "channels: expected six positive integers"),
        (("fcn8s", 2, None, "bgr"), "preprocessing: expected one of caffe, imagenet, got 'bgr'"),
        (("fcn8s", 2, None, "caffe", ("a",)), "class_names: expected 2 names, or none, got 1"),
        (
            ("fcn8s", 2, None, "caffe", ["a", "b"]),
            "class_names: expected a tuple of printable strings",
        ),
    ],
)
def test_a_wrong_spec_raises(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        NetworkSpec(*arguments)


def test_the_preprocessings_are_those_of_the_app():
    assert set(PREPROCESSINGS) == set(checkpoints.PREPROCESSINGS)
