"""Networks for photos: their tiles, and checkpoints that cannot be served."""

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import small_networks
import torch
from safetensors.torch import save_file
from small_networks import NUM_CLASSES, make_photos, write_checkpoint

from app import network as networks
from app.devices import CPU
from app.errors import IllPosed
from app.network import Network, spans_of
from app.preprocessing import PREPROCESSINGS
from app.settings import Settings
from models import checkpoints as model_checkpoints
from models.checkpoints import load_network
from seg_loss import Bilinear, Deconvolution, InvalidInput

WHERE = ("SEG_LOSS_MODEL", "SEG_LOSS_NETWORK")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The directory of a checkpoint of each network."""
    directory = tmp_path_factory.mktemp("checkpoints")
    for name in ("Strided", "FullSize", "OneSize", "NoWhite", "Misshapen", "fcn8s"):
        write_checkpoint(directory, name)
    return directory


@cache
def load(directory, name, **settings) -> Network:
    factory = None if name.startswith("fcn") else f"small_networks:{name}"
    path = str(directory / f"{name}.safetensors")
    return networks.load(path, factory, CPU, Settings(**settings), WHERE)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 512, 1000])
@pytest.mark.parametrize(("side", "overlap"), [(64, 0), (64, 32), (128, 40), (100, 50)])
@pytest.mark.parametrize("alignment", [32, 224])
def test_tiles_cover_an_axis_and_begin_aligned(length, side, overlap, alignment):
    spans = spans_of(length, side, overlap, alignment)
    assert (spans[0].begin, spans[-1].end) == (0, length)
    assert spans[0].fade_in is None
    assert spans[-1].fade_out is None
    for span in spans:
        assert span.begin % alignment == 0
        assert span.begin < span.end
    for before, after in pairwise(spans):
        assert before.fade_out == after.fade_in
        assert before.end - after.begin >= overlap
        begin, end = after.fade_in
        assert after.begin - 1 < begin < end < before.end
    # The scores of a pixel come from two tiles at most.
    for middle in spans[1:-1]:
        assert middle.fade_in[1] <= middle.fade_out[0] + 1e-9


def test_a_photo_of_one_tile_is_computed_as_a_whole(checkpoints):
    (photo,) = make_photos((64, 50))
    scores, upsampling = load(checkpoints, "Strided").scores(photo)
    module, _ = load_network(checkpoints / "Strided.safetensors", network="small_networks:Strided")
    image = PREPROCESSINGS["imagenet"].to_input(photo)[None]
    expected, _ = module.scores(image)
    assert torch.equal(scores, expected)
    assert upsampling == Bilinear()


@pytest.mark.parametrize("name", ["Strided", "FullSize"])
@pytest.mark.parametrize(("side", "overlap"), [(64, 32), (100, 50)])
def test_tiles_equal_the_whole_where_the_network_reads_little(checkpoints, name, side, overlap):
    (photo,) = make_photos((203, 150))
    expected, upsampling = load(checkpoints, name).scores(photo)
    tiled = load(checkpoints, name, tile_side_pixels=side, tile_overlap_pixels=overlap)
    scores, upsampling_of_tiles = tiled.scores(photo)
    assert upsampling_of_tiles == upsampling
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_tiles_of_an_fcn_equal_the_whole_with_a_large_overlap(checkpoints):
    # The scores of a pixel depend on 202 pixels to each side, less than a quarter of the overlap.
    (photo,) = make_photos((1800, 24))
    expected, upsampling = load(checkpoints, "fcn8s", tile_side_pixels=1800).scores(photo)
    assert isinstance(upsampling, Deconvolution)
    tiled = load(checkpoints, "fcn8s", tile_side_pixels=1664, tile_overlap_pixels=832)
    assert len(tiled.spans(1800)) == 2
    scores, _ = tiled.scores(photo)
    tolerance = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(scores, expected, rtol=0, atol=tolerance)


def test_without_an_overlap_each_score_is_that_of_one_tile(checkpoints):
    (photo,) = make_photos((128, 32))
    for name, stride in (("FullSize", 1), ("Strided", 4)):
        network = load(checkpoints, name, tile_side_pixels=64, tile_overlap_pixels=0)
        scores, _ = network.scores(photo)
        halves = [network.scores(photo[rows])[0] for rows in (slice(0, 64), slice(64, 128))]
        assert network.stride == stride
        assert torch.equal(scores, torch.cat(halves, dim=2)), name


def test_tiles_show_no_seams(checkpoints):
    # The network reads more than the overlap, and the photo has one colour: where tiles meet, the
    # scores of fcn8s must not jump more than those of a single tile do.
    photo = np.full((700, 24, 3), 80, dtype=np.uint8)
    tiled = load(checkpoints, "fcn8s", tile_side_pixels=256, tile_overlap_pixels=128)
    assert len(tiled.spans(700)) > 3
    scores, _ = tiled.scores(photo)
    single, _ = load(checkpoints, "fcn8s").scores(photo[:256])
    jumps, usual = (tensor.diff(dim=2).abs().amax() for tensor in (scores, single))
    assert jumps <= 1.01 * usual


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (65, 70)])
def test_every_size_of_photo_has_scores_of_its_size(checkpoints, size):
    (photo,) = make_photos(size)
    for name in ("Strided", "FullSize", "fcn8s"):
        network = load(checkpoints, name, tile_side_pixels=64, tile_overlap_pixels=32)
        scores, upsampling = network.scores(photo)
        whole, _ = load(checkpoints, name).scores(photo)
        assert scores.shape == whole.shape
        assert scores.nbytes <= network.working_bytes(*size)
        if upsampling is None:
            assert scores.shape[2:] == size


def test_several_photos_are_computed_like_each_alone(checkpoints):
    photos = make_photos((40, 30), (40, 30), (40, 30))
    for name in ("Strided", "fcn8s"):
        network = load(checkpoints, name)
        together, upsampling = network.scores_of(photos)
        for photo, scores in zip(photos, together, strict=True):
            alone, upsampling_alone = network.scores_of([photo])
            assert upsampling_alone == upsampling
            torch.testing.assert_close(scores, alone[0], rtol=1e-5, atol=1e-4)


def test_batches_of_narrow_tiles_are_no_larger_than_others(checkpoints):
    # FCN pads each tile by 100 pixels to each side, however narrow it is.
    network = load(checkpoints, "fcn8s", max_batch_pixels=4 * 256 * 1024)
    assert network.max_batch(1, 1024) == network.max_batch(256, 1024) == 4
    assert network.max_batch(1, 1) == network.max_batch(256, 256) == 16
    assert network.max_batch(1024, 1024) == 1
    assert network.max_batch(5000, 5000) == 1


def test_a_network_with_scores_of_one_size_takes_photos_of_one_tile_alone(checkpoints):
    photo, large = make_photos((64, 64), (200, 64))
    network = load(checkpoints, "OneSize", tile_side_pixels=128, tile_overlap_pixels=32)
    assert network.scores(photo)[0].shape == (1, NUM_CLASSES, 4, 4)
    with pytest.raises(IllPosed) as error:
        network.scores(large)
    assert error.value.detail == (
        "image: expected at most 128 x 128, since scores of small_networks:OneSize fit no tiles, "
        "got 200 x 64. Send a smaller photo."
    )


def test_a_photo_that_the_network_cannot_process_is_an_error(checkpoints):
    network = load(checkpoints, "NoWhite")
    with pytest.raises(IllPosed) as error:
        network.scores(make_photos((1, 2))[0])
    assert error.value.detail == (
        "image: expected a size that the network small_networks:NoWhite can process, got 1 x 2."
    )


def test_every_preprocessing_of_a_checkpoint_is_known():
    assert set(PREPROCESSINGS) == set(model_checkpoints.PREPROCESSINGS)


def test_what_clients_may_know_is_in_the_fields(checkpoints):
    assert load(checkpoints, "fcn8s", tile_side_pixels=512).fields() == {
        "network": "fcn8s",
        "num_classes": NUM_CLASSES,
        "class_names": list(small_networks.CLASS_NAMES),
        "preprocessing": "caffe",
        "max_photo_pixels": 1 << 24,
        "tile_side_pixels": 512,
        "tile_overlap_pixels": 256,
    }


def message_of(path, factory=None) -> str:
    with pytest.raises(InvalidInput) as error:
        networks.load(str(path), factory, CPU, Settings(), WHERE)
    return f"{error.value}"


def test_a_missing_checkpoint_names_the_setting(tmp_path):
    path = tmp_path / "nothing.safetensors"
    assert message_of(path) == (
        "SEG_LOSS_MODEL: expected a checkpoint that can be read, "
        f"got {path}: No such file or directory."
    )


def test_a_pickled_checkpoint_is_never_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    for name in ("model.pt", "model.safetensors", "model.caffemodel"):
        torch.save({"weight": Evil()}, tmp_path / name)
        assert message_of(tmp_path / name).startswith("SEG_LOSS_MODEL: ")
    assert not (tmp_path / "executed").exists()


def test_a_damaged_checkpoint_names_the_setting(checkpoints, tmp_path):
    content = (checkpoints / "fcn8s.safetensors").read_bytes()
    for name, damaged in (("cut", content[:-9]), ("empty", b""), ("text", b"PK\3\4" * 99)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        assert message_of(path).startswith(f"SEG_LOSS_MODEL: {name}.safetensors: expected")


def test_a_factory_in_a_checkpoint_is_not_imported_from_it(checkpoints, tmp_path):
    metadata = {
        "format": "pt",
        "network": "not_imported:make",
        "num_classes": "5",
        "preprocessing": "imagenet",
    }
    save_file({"score": torch.zeros(5)}, tmp_path / "a.safetensors", metadata)
    (tmp_path / "not_imported.py").write_text("raise AssertionError")
    message = message_of(tmp_path / "a.safetensors")
    assert message.startswith("SEG_LOSS_MODEL: a.safetensors: expected a network of this package")
    assert message.endswith("SEG_LOSS_NETWORK='not_imported:make'.")


def test_another_factory_than_that_of_the_checkpoint_is_an_error(checkpoints):
    message = message_of(checkpoints / "Strided.safetensors", "small_networks:NoWhite")
    assert "expected the network small_networks:NoWhite, got small_networks:Strided" in message


def test_a_factory_that_fails_is_an_error_with_its_message(checkpoints, tmp_path):
    content = (checkpoints / "Strided.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for factory, expected in (
        (
            "small_networks:failing",
            "a network that computes a photo of 64 x 64, got LookupError: no network with 5",
        ),
        ("small_networks:missing", "an importable network, got small_networks:missing: module"),
        ("small_networks:NUM_CLASSES", "a callable that returns a network"),
    ):
        header["__metadata__"]["network"] = factory
        text = json.dumps(header).encode()
        path = tmp_path / "a.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        message = message_of(path, factory)
        assert message.startswith("SEG_LOSS_MODEL")
        assert expected in message


def test_a_network_that_cannot_compute_is_an_error_with_its_message(tmp_path):
    path = write_checkpoint(tmp_path, "Broken")
    assert message_of(path, "small_networks:Broken") == (
        "SEG_LOSS_MODEL: expected a network that computes a photo of 64 x 64, "
        "got RuntimeError: needs 65 pixels."
    )


def test_a_network_that_has_diverged_is_an_error(tmp_path):
    path = write_checkpoint(tmp_path, "Diverged")
    assert message_of(path, "small_networks:Diverged") == (
        "SEG_LOSS_MODEL: small_networks:Diverged: expected finite scores of a black photo, "
        "got NaN or infinity. The network has diverged, or the file is damaged."
    )


def test_small_scores_without_an_upsampling_are_an_error(tmp_path):
    path = write_checkpoint(tmp_path, "Small")
    assert message_of(path, "small_networks:Small") == (
        "SEG_LOSS_MODEL: small_networks:Small: expected scores of 64 x 64, or an upsampling to "
        "that size, got 16 x 16."
    )


def test_a_network_with_other_scores_than_it_says_is_an_error(checkpoints):
    message = message_of(checkpoints / "Misshapen.safetensors", "small_networks:Misshapen")
    assert message == (
        "SEG_LOSS_MODEL: small_networks:Misshapen: expected scores [1,5,h,w], "
        "got shape (1, 6, 64, 64)."
    )
