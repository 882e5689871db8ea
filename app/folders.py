"""The files of a command that reads many: their inputs, outputs and labels, checked before work.

A folder stands for the files in it and in its folders whose suffix is one of those asked for. Names
that begin with a dot are left out, and so is the folder of the outputs, which may lie in that of
the inputs. The output of a file has its name and place relative to the folder: `IN/a/b.npy` becomes
`OUT/a/b.png`. Labels are found in the same way: `LABELS/a/b.png`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import IllPosed, UsageError
from .formats import LABEL_MAP_SUFFIXES, TENSOR_SUFFIXES

LABEL_MAP_SUFFIX, MAPS_SUFFIX = ".png", ".safetensors"
"""The suffixes of what is written for a file."""
LABEL_SUFFIXES = (*LABEL_MAP_SUFFIXES, *TENSOR_SUFFIXES)


@dataclass(frozen=True)
class FileTask:
    """One input file with its outputs.

    Attributes:
        source: the file.
        place: its path relative to the folder that it was found in, without the suffix.
        outputs: the files to write, by suffix.
    """

    source: Path
    place: Path
    outputs: dict[str, Path]


def tasks_of(
    inputs: Sequence[Path],
    output: Path,
    *,
    suffixes: Sequence[str],
    with_maps: bool,
    labels: Path | None = None,
    others: Iterable[Path] = (),
) -> list[FileTask]:
    """Returns the files of inputs, in order, with the files that will be written for them.

    Args:
        inputs: files and folders.
        output: a folder, or for a single input a file: .png for its label map, .safetensors for its
            maps alone.
        suffixes: of the files that are taken from a folder.
        with_maps: whether maps are written beside each label map.
        labels: the file or folder of the labels; None without labels.
        others: further files that must not be replaced.

    Raises:
        UsageError: if an output would replace an input or another output, or several inputs have a
            single file as their output.
        IllPosed: if a folder has no such files.
    """
    is_file = output.suffix in (LABEL_MAP_SUFFIX, MAPS_SUFFIX) and not output.is_dir()
    if is_file and (len(inputs) > 1 or inputs[0].is_dir()):
        raise UsageError(f"--output: expected a folder for several files, got {output}.")
    if not is_file and output.exists() and not output.is_dir():
        raise UsageError(f"--output: expected a folder, got the file {output}.")
    written = (LABEL_MAP_SUFFIX, MAPS_SUFFIX) if with_maps else (LABEL_MAP_SUFFIX,)
    if output.suffix == MAPS_SUFFIX and is_file:
        written = (MAPS_SUFFIX,)
    tasks = []
    for path in inputs:
        for source, place in _files_in(path, suffixes, output):
            base = output.with_suffix("") if is_file else output / place
            outputs = {suffix: base.with_name(f"{base.name}{suffix}") for suffix in written}
            tasks.append(FileTask(source, place, outputs))
    read = [path for task in tasks for path in (task.source, *_candidates(task, labels))]
    _check_outputs(tasks, [*read, *others])
    return tasks


def labels_for(task: FileTask, labels: Path) -> Path:
    """Returns the label file of a task: `labels` itself, or the one of its place in that folder.

    Raises:
        IllPosed: if there is none, or several.
    """
    if not labels.is_dir():
        return labels
    found = [path for path in _candidates(task, labels) if path.is_file()]
    if len(found) == 1:
        return found[0]
    expected = f"one file {labels / task.place} with one of {', '.join(LABEL_SUFFIXES)}"
    raise IllPosed("labels", expected, " and ".join(map(str, found)) or "none")


def _candidates(task: FileTask, labels: Path | None) -> list[Path]:
    """Returns the paths that the labels of a task may have."""
    if labels is None or not labels.is_dir():
        return [] if labels is None else [labels]
    return [labels / f"{task.place}{suffix}" for suffix in LABEL_SUFFIXES]


def _files_in(path: Path, suffixes: Sequence[str], output: Path) -> list[tuple[Path, Path]]:
    """Returns files with their places; a file itself, whatever its suffix is.

    Files in a folder `output` within `path` are those of an earlier call.
    """
    if not path.is_dir():
        return [(path, Path(path.stem))]
    folder, earlier = path.resolve(), output.resolve()
    is_within = folder in earlier.parents
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not (is_within and earlier in (folder / file.relative_to(path)).parents)
        and file.is_file()
    ]
    if not found:
        raise IllPosed(f"{path}", f"files with one of {', '.join(suffixes)}", "none")
    return [(file, file.relative_to(path).with_suffix("")) for file in found]


def _check_outputs(tasks: Sequence[FileTask], inputs: Iterable[Path]) -> None:
    kept = {path.resolve() for path in inputs}
    writers: dict[Path, Path] = {}
    for task in tasks:
        for output in task.outputs.values():
            resolved = output.resolve()
            if resolved in kept:
                raise UsageError(f"--output: expected another place, since {output} is an input.")
            if resolved in writers:
                sentence = f"{writers[resolved]} and {task.source} would both become {output}."
                raise UsageError(f"--output: expected one input for each file, but {sentence}")
            writers[resolved] = task.source
