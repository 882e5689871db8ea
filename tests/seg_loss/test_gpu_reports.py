"""The ring of reports of invalid labels, which the tests write as the kernel would.

`test_backend_labels.py` has the same promises with the kernel itself.
"""

import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from seg_loss import _labels
from seg_loss.gpu import labels, reports
from seg_loss.gpu.reports import RING_SIZE, Context, Reports

LABELS, PIXELS, CLASSES = (
    field.value
    for field in (labels.INVALID_LABELS, labels.INVALID_PIXEL_WEIGHTS, labels.INVALID_CLASS_WEIGHTS)
)
CPU = torch.device("cpu")
NO_INDEX = labels.NO_INDEX.value


def context(*shape, num_classes=21, ignored=(255,)):
    return Context(torch.Size(shape or (2, 7, 9)), torch.uint8, num_classes, ignored)


USUAL = context()


def bits(value):
    """Returns the bits of a float64, which is how a report has values that are no labels."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


@pytest.fixture
def ring():
    return Reports(CPU)


def write(ring, slot, value=77, *, field=LABELS, count=1, offset=0):
    """Writes a report as the kernel does, which says last that there is one."""
    report = ring.memory[slot]
    report[field], report[field + 1], report[field + 2] = count, offset, value
    report[labels.IS_WRITTEN.value] = 1
    ring.memory[0, labels.IS_WRITTEN.value] = 1


def deferred(ring, of=USUAL):
    return ring.reserve(of, is_deferred=True, is_captured=False)


def raising(ring, of=USUAL):
    return ring.reserve(of, is_deferred=False, is_captured=False)


def captured(ring, of=USUAL):
    return ring.reserve(of, is_deferred=True, is_captured=True)


def errors_in(ring):
    """Returns the messages of all deferred errors, in the order in which they are raised."""
    messages = []
    while (error := ring.take_error(wait=False)) is not None:
        messages.append(str(error))
    return messages


def values_in(ring):
    """Returns the invalid labels of all deferred errors."""
    return [int(message.partition(", got ")[2].split()[0]) for message in errors_in(ring)]


# -- fields ------------------------------------------------------------------------------------


def test_a_report_of_labels_says_value_index_and_count(ring):
    slot = raising(ring)
    write(ring, slot, 77, offset=63 + 2 * 9 + 4, count=3)
    message = "labels: expected 0...20 or 255 (ignored), got 77 at (1, 2, 4) and 2 more pixels."
    assert str(ring.error_in(slot, USUAL)) == message


@pytest.mark.parametrize(("shape", "index"), [((100,), "(59,)"), ((2, 3, 4, 5), "(0, 2, 3, 4)")])
def test_the_index_has_the_axes_of_the_labels(ring, shape, index):
    slot = raising(ring)
    write(ring, slot, 77, offset=59)
    assert f"got 77 at {index}" in str(ring.error_in(slot, context(*shape)))


@pytest.mark.parametrize("value", [-1, -128, 1 << 40, -(1 << 63), (1 << 63) - 1])
def test_labels_are_reported_as_integers(ring, value):
    slot = raising(ring)
    write(ring, slot, value)
    assert f"got {value} at (0, 0, 0)." in str(ring.error_in(slot, USUAL))


@pytest.mark.parametrize("value", [-1.0, -1e-300, float("inf"), float("nan")])
def test_weights_are_reported_as_floats(ring, value):
    slot = raising(ring)
    write(ring, slot, bits(value), field=PIXELS, count=2, offset=10)
    message = (
        f"pixel_weight: expected finite numbers that are not negative, got {value} at (0, 1, 1)"
    )
    assert str(ring.error_in(slot, USUAL)) == f"{message} and 1 more pixel."
    write(ring, slot, bits(value), field=CLASSES, offset=20)
    message = (
        f"class_weight: expected finite numbers that are not negative, got {value} for class 20."
    )
    assert str(ring.error_in(slot, USUAL)) == message


def test_of_several_kinds_class_weights_come_first_and_pixel_weights_last(ring):
    slot = raising(ring)
    kinds = []
    for fields in ((PIXELS, LABELS, CLASSES), (PIXELS, LABELS), (PIXELS,)):
        for field in fields:
            write(ring, slot, bits(-1.0), field=field)
        kinds.append(str(ring.error_in(slot, USUAL)).partition(":")[0])
    assert kinds == ["class_weight", "labels", "pixel_weight"]


def test_fields_without_a_count_are_not_read(ring):
    # The kernel writes the index and value of no label if weights alone are invalid.
    slot = raising(ring)
    write(ring, slot, 0, count=0, offset=NO_INDEX)
    write(ring, slot, bits(-1.0), field=CLASSES, offset=3)
    assert str(ring.error_in(slot, USUAL)).startswith("class_weight")


# -- calls that wait for their report ------------------------------------------------------------


def test_a_slot_without_a_report_has_no_error(ring):
    assert ring.error_in(raising(ring), USUAL) is None


def test_a_report_is_raised_once(ring):
    slot = raising(ring)
    write(ring, slot)
    assert ring.error_in(slot, USUAL) is not None
    assert ring.error_in(slot, USUAL) is None
    assert not ring.memory[slot].any()


def test_a_report_of_a_call_that_waits_is_never_deferred(ring):
    write(ring, raising(ring))
    assert errors_in(ring) == []


def test_a_call_that_waits_leaves_other_reports_to_their_calls(ring):
    first = deferred(ring)
    write(ring, first, 71)
    for _ in range(RING_SIZE - 1):
        slot = raising(ring)
        assert slot != first
        assert ring.error_in(slot, USUAL) is None
    assert values_in(ring) == [71]


def test_a_call_that_waits_does_not_get_an_old_report_of_its_slot(ring):
    first = deferred(ring)
    write(ring, first)
    for _ in range(RING_SIZE):
        slot = raising(ring)
    assert slot == first
    assert ring.error_in(slot, USUAL) is None
    assert errors_in(ring) == []


def test_a_call_does_not_get_fields_that_an_unread_report_has_left(ring):
    # A call without weights writes no fields of weights.
    first = raising(ring)
    write(ring, first, bits(-1.0), field=CLASSES)
    for _ in range(RING_SIZE):
        slot = raising(ring)
    write(ring, slot, 77)
    assert "got 77 at (0, 0, 0)" in str(ring.error_in(slot, USUAL))


# -- deferred reports ----------------------------------------------------------------------------


def test_without_a_report_nothing_is_raised(ring):
    for _ in range(3):
        deferred(ring)
    assert errors_in(ring) == []


def test_all_deferred_reports_are_raised_the_oldest_call_first(ring):
    slots = [deferred(ring) for _ in range(5)]
    for k in (3, 0, 4):  # a device need not run calls on several streams in their order
        write(ring, slots[k], 70 + k)
    assert values_in(ring) == [70, 73, 74]


def test_each_deferred_report_is_about_the_shape_of_its_call(ring):
    contexts = [context(4, 25), context(2, 5, 10, num_classes=3, ignored=()), context(100)]
    for of in contexts:
        write(ring, deferred(ring, of), 77, offset=59)
    assert errors_in(ring) == [
        "labels: expected 0...20 or 255 (ignored), got 77 at (2, 9).",
        "labels: expected 0...2, got 77 at (1, 0, 9).",
        "labels: expected 0...20 or 255 (ignored), got 77 at (59,).",
    ]


def test_reports_that_come_between_two_checks_are_raised_later(ring):
    slots = [deferred(ring) for _ in range(3)]
    write(ring, slots[1], 71)
    assert values_in(ring) == [71]
    write(ring, slots[0], 70)
    write(ring, slots[2], 72)
    assert values_in(ring) == [70, 72]
    assert values_in(ring) == []


def test_a_check_that_finds_nothing_does_not_look_at_the_slots(ring):
    slot = deferred(ring)
    write(ring, slot)
    ring.memory[0] = 0  # the kernel writes this last
    assert errors_in(ring) == []


def test_the_ring_begins_again_after_its_last_slot(ring):
    slots = [deferred(ring) for _ in range(RING_SIZE + 3)]
    assert slots[:RING_SIZE] == list(range(1, RING_SIZE + 1))
    assert slots[RING_SIZE:] == slots[:3]
    for k in (RING_SIZE - 1, RING_SIZE, RING_SIZE + 1):
        write(ring, slots[k], k)
    assert values_in(ring) == [RING_SIZE - 1, RING_SIZE, RING_SIZE + 1]


def test_a_report_is_kept_until_its_slot_is_needed_again(ring):
    write(ring, deferred(ring), 71)
    for _ in range(RING_SIZE - 1):
        deferred(ring)
    write(ring, deferred(ring), 72)
    assert values_in(ring) == [72]


def test_calls_of_several_threads_have_slots_of_their_own(ring):
    with ThreadPoolExecutor(8) as pool:
        slots = list(pool.map(lambda _: deferred(ring), range(RING_SIZE)))
    assert sorted(slots) == list(range(1, RING_SIZE + 1))


# -- calls in CUDA graphs ------------------------------------------------------------------------


def test_calls_of_a_graph_have_a_slot_that_no_other_call_gets(ring):
    slot = captured(ring)
    assert slot not in {deferred(ring) for _ in range(2 * RING_SIZE)}
    assert slot < len(ring.memory)


def test_calls_of_graphs_share_a_slot_if_their_reports_say_the_same(ring):
    first, other = context(2, 7, 9), context(2, 9, 7)
    assert captured(ring, first) == captured(ring, context(2, 7, 9)) != captured(ring, other)
    assert captured(ring, context(2, 7, 9, num_classes=3)) != captured(ring, first)
    assert captured(ring, context(2, 7, 9, ignored=())) != captured(ring, first)


def test_each_replay_of_a_graph_reports_again(ring):
    slot = captured(ring)
    assert values_in(ring) == []
    for value in (71, 72):
        write(ring, slot, value)
        assert values_in(ring) == [value]
        assert values_in(ring) == []  # a replay with valid labels writes nothing


def test_a_graph_reports_however_many_calls_came_after_its_capture(ring):
    slot = captured(ring, context(4, 25))
    for _ in range(2 * RING_SIZE):
        deferred(ring)
    write(ring, slot, 71, offset=59)
    (message,) = errors_in(ring)
    assert "got 71 at (2, 9)" in message


def test_a_capture_leaves_the_report_of_a_replay(ring):
    slot = captured(ring)
    write(ring, slot, 71)
    assert captured(ring) == slot
    assert values_in(ring) == [71]


def test_of_too_many_shapes_in_graphs_the_last_share_a_slot(ring, monkeypatch):
    monkeypatch.setattr(reports, "_CAPTURED_SIZE", 3)
    slots = [captured(ring, context(1, size)) for size in range(1, 6)]
    assert slots == [RING_SIZE + k for k in (1, 2, 3, 3, 3)]
    write(ring, slots[0], 71)
    write(ring, slots[-1], 75)
    assert values_in(ring) == [71, 75]


def test_the_memory_has_a_row_for_each_slot(ring):
    assert ring.memory.dtype == torch.int64
    assert ring.memory.shape == (1 + RING_SIZE + reports._CAPTURED_SIZE, labels.REPORT_SIZE.value)
    assert not ring.memory.any()


# -- devices -----------------------------------------------------------------------------------


@pytest.fixture
def devices(monkeypatch):
    """The reports of no device yet."""
    monkeypatch.setattr(reports, "_reports", {})
    monkeypatch.setattr(_labels, "_pending", [])


@pytest.mark.usefixtures("devices")
def test_each_device_has_its_own_reports():
    cpu, meta = reports.reports_of(CPU), reports.reports_of(torch.device("meta"))
    assert cpu is not meta
    assert reports.reports_of(CPU) is cpu
    assert reports.reports_of(torch.device("meta")) is meta


@pytest.mark.usefixtures("devices")
def test_check_raises_the_reports_of_all_devices():
    for device, value in (("cpu", 71), ("meta", 72)):
        ring = reports.reports_of(torch.device(device))
        write(ring, deferred(ring), value)
    for value in (71, 72):
        with pytest.raises(_labels.InvalidInput, match=f"got {value} at"):
            _labels.check()
    _labels.check()


def test_only_check_waits_for_the_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    ring, device = Reports(CPU), torch.device("cuda", 1)
    ring._device = device
    ring.take_error(wait=False)
    assert not waited
    ring.take_error(wait=True)
    assert waited == [device]
