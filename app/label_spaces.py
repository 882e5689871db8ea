"""Label spaces: what the values in label files mean, and how they become class indices.

| `label_space` | values | class | ignored |
|---|---|---|---|
| `raw` | class indices | the value | `ignore_index` |
| `cityscapes_ids` | 0...33 of *_labelIds.png | the train id, 0...18 | the 15 others, 255 |
| `ade_zero` | 1... of ADE20K, SIFT Flow | the value minus 1 | 0, 255 |
| `cocostuff_182` | 0...181 of COCO-Stuff | 0...170, without the 11 unused ids | 255 |
| `coco_ids` | 1...182, the ids of COCO, one more than the above | the same | 0, 255 |
| `instance_1000` | *_instanceIds.png | the value, // 1000 from 1000 on | `ignore_index` |
| `binary_255` | 0 and 255 of a mask | 0 and 1 | none |

Where a space has ignored values, they become 255, which `ignore_index` must hold. It is compared
with the classes, after the mapping. `advice_for` recognizes the space of values that are read as
class indices though they are none. A sample of the pixels raises a suspicion, and all pixels must
confirm it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seg_loss.constants import USUAL_VOIDS

from .errors import IllPosed

Labels = npt.NDArray[np.integer]

VOID = 255
"""The label of ignored pixels in the spaces that have some."""

SPACE_OPTIONS: Mapping[str, str] = {"labels": "label_space", "prediction": "prediction_space"}
"""The option that names the space of an input, by the name of the input."""

_INVALID = -1
_MAX_SAMPLE = 1 << 14
_BLOCK_PIXELS = 1 << 18
_MAX_VALUES = (1 << 16) + 1024
"""The most values that are looked at. They are more than there are classes and ignored values, so
that some of them are invalid, and more than a table of a label space has."""
"""Number of pixels that are looked at together, so that temporary arrays stay small."""
_SUSPICIOUS_SHARE = 0.4

_SHIFTS = (
    (-1, "minus", "Classes from 1, with 0 for void? Use label_space=ade_zero."),
    (1, "plus", "Has 1 been subtracted twice?"),
)
_MIN_SHIFTED_CLASSES = 3


@dataclass(frozen=True)
class Values:
    """The values in labels.

    Attributes:
        present: the values that occur.
        num_classes: C of the logits.
        ignored: the option `ignore_index`.
    """

    present: frozenset[int]
    num_classes: int
    ignored: Collection[int]

    @property
    def classes(self) -> frozenset[int]:
        """The values that are a class and not ignored."""
        return frozenset(filter(self._is_class, self.counted))

    @property
    def counted(self) -> frozenset[int]:
        """The values that are not ignored."""
        return self.present.difference(self.ignored)

    @property
    def present_ignored(self) -> tuple[int, ...]:
        """The values that are ignored and occur, in the order of the option."""
        return tuple(value for value in self.ignored if value in self.present)

    @property
    def invalid(self) -> frozenset[int]:
        """The values that are neither a class nor ignored."""
        return self.counted - self.classes

    def are_within(self, *values: int | range) -> bool:
        """Whether no other value is counted."""
        ranges = [
            value if isinstance(value, range) else range(value, value + 1) for value in values
        ]
        return all(any(v in row for row in ranges) for v in self.counted)

    def has_any(self, values: range) -> bool:
        """Whether one of these values is counted."""
        return any(v in values for v in self.counted)

    def _is_class(self, value: int) -> bool:
        return 0 <= value < self.num_classes


@dataclass(frozen=True)
class LabelSpace:
    """One row of `LABEL_SPACES`.

    Attributes:
        expected: the values that labels of this space may have, for messages.
        sign: a sentence about values that look like this space, as it follows a colon.
        table: the class of each value 0...255, or `_INVALID`; None if `convert` has no table.
        convert: what is done before the table is used.
        is_likely: whether values that are read as class indices look like this space.
    """

    expected: str
    sign: str = ""
    table: npt.NDArray[np.int16] | None = None
    convert: Callable[[Labels], Labels] | None = None
    is_likely: Callable[[Values], bool] = lambda values: False

    @property
    def has_void(self) -> bool:
        """Whether some values become `VOID`."""
        return self.table is not None and VOID in self.table


def _table(classes: Mapping[int, int]) -> npt.NDArray[np.int16]:
    table = np.full(256, _INVALID, dtype=np.int16)
    table[list(classes)] = list(classes.values())
    return table


def _classes_of_instances(labels: Labels) -> Labels:
    if np.iinfo(labels.dtype).max < 1000:  # the dtype has no such number to divide by
        return labels
    return np.where(labels >= 1000, labels // 1000, labels)


def _classes_of(values: Iterable[int]) -> dict[int, int]:
    return {value: index for index, value in enumerate(values)}


_CITYSCAPES = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
"""The ids of the 19 train ids, as in labels.py of cityscapesScripts."""

_COCO_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
_COCO = [value for value in range(182) if value not in _COCO_UNUSED]
_COCO_IDS = [value + 1 for value in _COCO]
"""The ids in labels.txt of COCO-Stuff, where 0 is unlabelled."""

LABEL_SPACES: Mapping[str, LabelSpace] = {
    "raw": LabelSpace("class indices"),
    "cityscapes_ids": LabelSpace(
        "0...33 or 255, ids of Cityscapes",
        "values up to 33 for 19 classes look like ids of Cityscapes, not train ids.",
        _table({**dict.fromkeys((*range(34), VOID), VOID), **_classes_of(_CITYSCAPES)}),
        is_likely=lambda values: (
            values.num_classes == 19
            and values.has_any(range(20, 34))
            and values.are_within(range(-1, 34), VOID)
        ),
    ),
    "ade_zero": LabelSpace(
        "0...255, where 0 is void",
        "values up to 150 for 150 classes look like ADE20K, with 0 for void and classes from 1.",
        _table({0: VOID, VOID: VOID} | {value: value - 1 for value in range(1, VOID)}),
        is_likely=lambda values: (
            values.num_classes == 150
            and values.has_any(range(150, 151))
            and values.are_within(range(151), VOID)
        ),
    ),
    "cocostuff_182": LabelSpace(
        f"0...181 or 255, and none of the unused ids {', '.join(map(str, _COCO_UNUSED))}",
        "values up to 181 for 171 classes look like ids of COCO-Stuff.",
        _table({VOID: VOID, **_classes_of(_COCO)}),
        is_likely=lambda values: (
            values.num_classes == 171
            and values.has_any(range(172, 182))
            and values.are_within(*_COCO, VOID)
        ),
    ),
    "coco_ids": LabelSpace(
        f"0...182 or 255, and none of the unused ids {', '.join(str(v + 1) for v in _COCO_UNUSED)}",
        "values up to 182 for 171 classes look like ids of COCO, with 0 for unlabelled.",
        _table({0: VOID, VOID: VOID, **_classes_of(_COCO_IDS)}),
        is_likely=lambda values: (
            values.num_classes == 171
            and values.has_any(range(172, 183))
            and values.are_within(0, *_COCO_IDS, VOID)
        ),
    ),
    "instance_1000": LabelSpace(
        "ids of instances",
        "values from 1000 on look like ids of instances, 1000 times their class and more.",
        convert=_classes_of_instances,
        is_likely=lambda values: any(
            value >= 1000 and value not in USUAL_VOIDS for value in values.invalid
        ),
    ),
    "binary_255": LabelSpace(
        "0 or 255 of a mask",
        "values 0 and 255 for 2 classes look like a mask.",
        _table({0: 0, 255: 1}),
        # By default 255 is ignored, so that it is not counted.
        is_likely=lambda values: values.num_classes == 2 and values.present == {0, VOID},
    ),
}


def to_classes(labels: Labels, name: str, ignored: Sequence[int], where: str) -> Labels:
    """Returns the class indices of labels in the space of that name.

    Args:
        labels: the values.
        name: the space.
        ignored: the option `ignore_index`.
        where: the name of the input, a key of `SPACE_OPTIONS`.

    Raises:
        IllPosed: if a value does not belong to the space, or `VOID` is not ignored.
    """
    space = LABEL_SPACES[name]
    if space.has_void and VOID not in ignored:
        got = ",".join(map(str, ignored)) or "none"
        option = f"{SPACE_OPTIONS[where]}={name}"
        expected = f"{VOID} among its values, which {option} gives to void pixels"
        raise IllPosed("ignore_index", expected, got)
    if space.convert is not None:
        labels = space.convert(labels)
    if space.table is None:
        return labels
    if space.has_void and (labels == -1).any():
        labels = np.where(labels == -1, np.int64(VOID), labels)
    inside = np.clip(labels, 0, min(255, np.iinfo(labels.dtype).max))
    classes = space.table[inside]
    invalid = (classes == _INVALID) | (inside != labels)
    if invalid.any():
        fix = ""
        other = _OTHER_COCO.get(name)
        if other is not None and _are_all_in(labels, LABEL_SPACES[other]):
            fix = f"All values are ids of {SPACE_OPTIONS[where]}={other}."
        raise IllPosed(where, space.expected, _first_of(labels, invalid), fix)
    return classes.astype(np.uint8)


_OTHER_COCO = {"cocostuff_182": "coco_ids", "coco_ids": "cocostuff_182"}
"""The other numbering of the same classes, from 0 or from 1."""


def _are_all_in(labels: Labels, space: LabelSpace) -> bool:
    """Returns whether all values are those of a space with a table."""
    assert space.table is not None
    present = _values_of(labels)
    return all(0 <= value < len(space.table) and space.table[value] >= 0 for value in present)


def values_of_classes(name: str, num_values: int) -> npt.NDArray[np.intp]:
    """Returns the value of each class in a space, of the values below `num_values`.

    So colours by value become colours by class. There are none in a space without a table, and
    none behind a class without a value.
    """
    space = LABEL_SPACES[name]
    if name == "raw":
        return np.arange(num_values)
    if space.table is None:
        return np.arange(0)
    classes = space.table[:num_values]
    value_of = {int(c): v for v, c in enumerate(classes) if c not in (_INVALID, VOID)}
    count = next(index for index in range(len(value_of) + 1) if index not in value_of)
    return np.array([value_of[index] for index in range(count)], dtype=np.intp)


def advice_for(labels: Labels, num_classes: int, ignored: Sequence[int], name: str) -> list[str]:
    """Returns sentences about labels that are valid but probably unintended.

    Args:
        labels: class indices, after `to_classes`.
        num_classes: C of the logits.
        ignored: the option `ignore_index`.
        name: the label space that the request names, or an empty string.

    Raises:
        IllPosed: if labels are invalid, and a request can name what they look like.
    """
    sample = _sample(labels)
    values = Values(_values_of(sample), num_classes, ignored)
    sentences = []
    if not name and (values.invalid or _likely_space(values)):
        likely = _confirm(labels, num_classes, ignored)
        if likely:
            advice = f"{LABEL_SPACES[likely].sign} Use label_space={likely}"
            sentences.append(f"labels: {advice}, or label_space=raw if they are class indices.")
    present_ignored = values.present - values.counted
    # Few requests need more than the sample, which is fast for any number of pixels.
    if _num_equal(sample, present_ignored) > _SUSPICIOUS_SHARE * sample.size:
        num_ignored = _num_equal(labels, present_ignored)
        if 2 * num_ignored > labels.size:
            share = _percent(num_ignored, labels.size)
            sentences.append(f"labels: {share} of the pixels are ignored.")
    if num_classes > 1 and len(values.classes) == 1:
        (single,) = values.classes
        if _num_equal(labels, [single]) > 1 and _are_within(labels, [single, *ignored]):
            sentences.append(f"labels: all pixels that are not ignored have the class {single}.")
    return sentences


def shift_advice(confusion: npt.NDArray[np.integer]) -> list[str]:
    """Returns a sentence if predictions agree much better with labels minus 1 or plus 1.

    Args:
        confusion: [C,C], a row for each class of the labels and a column for each predicted one.
    """
    pixels_by_class = confusion.sum(axis=1)
    num_pixels = int(pixels_by_class.sum())
    for shift, name, fix in _SHIFTS:
        agreeing = np.diagonal(confusion, shift)
        rows = pixels_by_class[-shift:] if shift < 0 else pixels_by_class[:-shift]
        # A network that predicts one class alone agrees with a shift of another.
        num_shifted_classes = np.count_nonzero(2 * agreeing > rows)
        if 2 * agreeing.sum() > num_pixels and num_shifted_classes >= _MIN_SHIFTED_CLASSES:
            shares = [
                _percent(int(counts.sum()), num_pixels)
                for counts in (confusion.diagonal(), agreeing)
            ]
            subject = f"predictions agree with {shares[0]} of the labels"
            return [f"labels: {subject}, and with {shares[1]} of the labels {name} 1. {fix}"]
    return []


def agreement_advice(confusion: npt.NDArray[np.integer], inputs: Collection[str]) -> list[str]:
    """Returns a sentence if two label maps agree much better with one of them in a label space.

    Args:
        confusion: [C,C], a row for each class of the labels and a column for each of the
            prediction; both were read as class indices.
        inputs: those of labels and prediction whose space the request does not name.
    """
    num_pixels = int(confusion.sum())
    if 2 * confusion.trace() > num_pixels:
        return []
    found = []
    for where, counts in (("labels", confusion), ("prediction", confusion.T)):
        for name, space in LABEL_SPACES.items():
            if where not in inputs or not space.has_void or space.table is None:
                continue
            classes = space.table[: len(counts)].astype(np.intp)
            values = np.flatnonzero((classes >= 0) & (classes != VOID) & (classes < len(counts)))
            agreeing, pixels = counts[values, classes[values]], counts[values].sum(axis=1)
            if (
                2 * agreeing.sum() > num_pixels
                and np.count_nonzero(2 * agreeing > pixels) >= _MIN_SHIFTED_CLASSES
            ):
                found.append((int(agreeing.sum()), where, name))
    if not found:
        return []
    best, where, name = max(found)
    shares = [_percent(count, num_pixels) for count in (int(confusion.trace()), best)]
    option = f"{SPACE_OPTIONS[where]}={name}"
    subject = f"prediction and labels agree at {shares[0]} of the pixels"
    return [f"{where}: {subject}, and at {shares[1]} with {option}. Use {option}."]


def _percent(count: int, total: int) -> str:
    """Returns a share as a text, which says 100 % of no smaller one."""
    share = f"{100 * count / total:.3g}"
    return f"{share} %" if count == total or share != "100" else "more than 99.9 %"


def _sample(labels: Labels) -> Labels:
    """Returns some of the pixels; the step is odd, since widths are often even."""
    flat = labels.ravel("K")
    return flat[:: labels.size // _MAX_SAMPLE | 1]


def _blocks(labels: Labels) -> Iterator[Labels]:
    flat = labels.ravel("K")
    return (flat[begin : begin + _BLOCK_PIXELS] for begin in range(0, flat.size, _BLOCK_PIXELS))


def _values_of(labels: Labels) -> frozenset[int]:
    """Returns the values that occur. If there are more than `_MAX_VALUES`, returns only a part.

    A set of all values of a large map would take many times the memory of the map.
    """
    values: set[int] = set()
    for block in _blocks(labels):
        values.update(np.unique(block)[:_MAX_VALUES].tolist())
        if len(values) > _MAX_VALUES:
            break
    return frozenset(values)


def _num_equal(labels: Labels, values: Iterable[int]) -> int:
    return sum(
        int(np.count_nonzero(block == value)) for value in values for block in _blocks(labels)
    )


def _are_within(labels: Labels, values: Iterable[int]) -> bool:
    """Returns whether labels have no other value."""
    for block in _blocks(labels):
        others = block
        for value in values:
            others = others[others != value]
            if not others.size:
                break
        else:
            return False
    return True


def _confirm(labels: Labels, num_classes: int, ignored: Sequence[int]) -> str:
    """Returns the space that all pixels look like, or an empty string.

    Raises:
        IllPosed: if labels are invalid, and a request can name what they look like.
    """
    values = Values(_values_of(labels), num_classes, ignored)
    likely = _likely_space(values)
    if not values.invalid:
        return likely
    if likely:
        raise _invalid_error(labels, values, f"{_sign_of(likely)} Use label_space={likely}.")
    if len(values.invalid) == 1:
        (invalid,) = values.invalid
        if invalid == num_classes or invalid < 0 or invalid in USUAL_VOIDS:
            # Ignored values that occur are still void.
            ignore = ",".join(map(str, (*values.present_ignored, invalid)))
            fix = f"If {invalid} marks void pixels, pass ignore_index={ignore}."
            if invalid == num_classes and 0 not in values.classes:
                fix += " If classes are counted from 1, pass label_space=ade_zero."
            raise _invalid_error(labels, values, fix)
    return ""  # `seg_loss` raises


def prediction_fix(prediction: Labels, num_classes: int) -> str:
    """Returns the fix for a prediction with values that are no class; "" if there is none."""
    likely = _likely_space(Values(_values_of(prediction), num_classes, ()))
    return f"{_sign_of(likely)} Use prediction_space={likely}." if likely else ""


def _sign_of(space: str) -> str:
    """Returns the sentence about values that look like a space."""
    sign = LABEL_SPACES[space].sign
    return sign[0].upper() + sign[1:]


def _likely_space(values: Values) -> str:
    for name, space in LABEL_SPACES.items():
        if space.is_likely(values):
            return name
    return ""


def _invalid_error(labels: Labels, values: Values, fix: str) -> IllPosed:
    """Returns the error that `seg_loss` would raise, with another fix."""
    ignored = ", ".join(map(str, values.ignored))
    expected = f"0...{values.num_classes - 1}" + (f" or {ignored} (ignored)" if ignored else "")
    is_valid = (labels >= 0) & (labels < values.num_classes)
    for value in values.ignored:
        is_valid |= labels == value
    return IllPosed("labels", expected, _first_of(labels, ~is_valid), fix)


def _first_of(labels: Labels, chosen: npt.NDArray[np.bool_]) -> str:
    """Returns the value and position of the first of these pixels, and how many more there are."""
    index = tuple(map(int, np.unravel_index(np.argmax(chosen), chosen.shape)))
    more = int(np.count_nonzero(chosen)) - 1
    text = f"{labels[index]} at {index}"
    return text if not more else f"{text} and {more} more pixel{'s' if more > 1 else ''}"
