"""Chooses the name and the format of each output file."""

import collections
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from cqr_jax import files, formats
from cqr_jax.errors import UserError
from cqr_jax.restoring.sources import MARK, STANDARD, Source


class Naming(NamedTuple):
    """How the command line names the outputs.

    Attributes:
      output: a folder, a file, '-' for standard output, or None for the folder of each
        input.
      format: name of a format in `formats.FORMATS`; None to choose it by the input.
      suffix: text that is added to each name before the extension. None adds
        '.restored' to outputs that are written into the folder of their input.
      keep_extension: whether outputs keep the input's extension before their own.
    """

    output: str | None = None
    format: str | None = None
    suffix: str | None = None
    keep_extension: bool = False


def is_folder(output: str) -> bool:
    """Returns whether --output names a folder, which may not exist yet."""
    return output.endswith("/") or os.path.isdir(output)


def names_folder(output: str) -> bool:
    """Returns whether --output names a folder or, having no suffix, may name one."""
    return output != STANDARD and named_format(output) is None


def named_format(output: str | None) -> str | None:
    """Returns the format of the file that --output names; None if it names no file."""
    if not output or output == STANDARD or is_folder(output):
        return None
    return formats.format_of(output)


def output_format(path: str | os.PathLike, asked: str | None) -> str:
    """Returns the format of the output for an input file.

    Args:
      path: path of the input.
      asked: format that the user asked for, if any.

    Returns:
      The format that the user asked for, or else that of the input. It is PNG for JPEG
      inputs, because JPEG would compress the result again, and for inputs in formats
      that can't be written.
    """
    own = formats.format_of(path)
    return asked or (own if own and own != "jpeg" else "png")


def check(naming: Naming, count: int) -> None:
    """Checks that the outputs of a number of inputs can be named.

    Raises:
      UserError: if there are several inputs for one output file, if the suffix of
        --output is unknown or contradicts --format, or if --output can't be created.
    """
    output = naming.output
    if not output:
        return
    if output == STANDARD:
        if count > 1:
            raise UserError(
                f"-o -: writes one image to standard output, not {count} images"
            )
        return
    named = named_format(output)
    unknown = not named and not is_folder(output)
    if unknown and any(map(str.isalpha, pathlib.Path(output).suffix)):
        known = " ".join(formats.SUFFIXES)
        raise UserError(
            f"-o {output}: no format has this suffix; name a file with one of "
            f"{known}, or a folder with / at the end"
        )
    if named and count > 1:
        raise UserError(
            f"-o {output}: names a single file, but there are {count} images; "
            "name a folder"
        )
    if named and naming.format and naming.format != named:
        raise UserError(f"-o {output}: the suffix contradicts --format {naming.format}")
    _check_place(output, bool(named))


def _check_place(output: str, is_file: bool) -> None:
    """Raises a UserError if --output can't be created."""
    path = pathlib.Path(output).resolve()
    # A new file replaces an old one by renaming.
    if why := files.obstacle(path.parent if is_file else path):
        raise UserError(f"-o {output}: can't be written to: {why}")


def name(sources: list[Source], naming: Naming) -> list[str]:
    """Names the output file of each source; no two sources share one.

    In a folder, an output has the name of its input with the extension of its format.
    If several inputs would share an output, they keep their own extension before the
    new one: `a.jpg` and `a.jpeg` become `a.jpg.png` and `a.jpeg.png`. An input that
    already has the name of the output keeps it. Inputs of the same name from several
    folders are written into folders of those names. The names depend only on the
    inputs, so that a second run of the same command finds its earlier results.

    Args:
      sources: the inputs, without duplicates.
      naming: how the command line names the outputs, accepted by `check`.
    """
    if naming.output == STANDARD:
        return [STANDARD] * len(sources)
    if naming.output and named_format(naming.output):
        return [naming.output] * len(sources)
    targets = [_target(source, naming, 0) for source in sources]
    deepest = max(
        (len(pathlib.Path(x.name).absolute().parts) for x in sources), default=0
    )
    for level in range(1, deepest + 1):
        for i in _clashing(sources, targets):
            targets[i] = _target(sources[i], naming, level)
    return targets


def longer(source: Source, naming: Naming) -> Iterator[str]:
    """Yields further names for the output of a source, each longer than the last."""
    for level in range(1, len(pathlib.Path(source.name).absolute().parts) + 1):
        yield _target(source, naming, level)


def _clashing(sources: list[Source], targets: list[str]) -> list[int]:
    """Returns the indices of sources whose target belongs to another source."""
    sharing = collections.defaultdict(list)
    for i, target in enumerate(targets):
        sharing[os.path.realpath(target)].append(i)
    inputs = {os.path.realpath(x.name): i for i, x in enumerate(sources)}
    found = []
    for target, group in sharing.items():
        same_name = [
            i for i in group if sources[i].under.name == os.path.basename(target)
        ]
        keeper = same_name[0] if len(same_name) == 1 else None
        if target in inputs:  # only its own result may replace an input
            keeper = inputs[target]
        elif len(group) == 1:
            keeper = group[0]
        found += [i for i in group if i != keeper]
    return found


def _target(source: Source, naming: Naming, level: int) -> str:
    """Names the output of one source.

    Args:
      source: the input.
      naming: how the command line names the outputs.
      level: 0 for the plain name, 1 to keep the extension of the input. From 2 on, the
        output is in `level` - 1 nested folders, named like those above the input.
    """
    form = output_format(source.under, naming.format)
    extension = formats.extension(form, source.under)
    path = pathlib.Path(source.name).absolute()
    under = source.under
    if level > 1:
        under = pathlib.PurePath(*path.parts[1:][-level:])
    keep = naming.keep_extension or level > 0
    stem = under.name if keep and under.suffix != extension else under.stem

    def beside(suffix: str) -> pathlib.Path:
        folder = pathlib.Path(naming.output) if naming.output else path.parent
        within = under.parent if naming.output else pathlib.PurePath()
        return folder / within / (stem + suffix + extension)

    if naming.suffix is not None:
        return _readable(beside(naming.suffix), source, naming)
    plain = beside("")
    own_folder = os.path.realpath(plain.parent) == os.path.realpath(path.parent)
    replaces = naming.output and os.path.realpath(plain) == os.path.realpath(path)
    if own_folder and source.name != STANDARD and not replaces:
        plain = beside(MARK)
    return _readable(plain, source, naming)


def _readable(target: pathlib.Path, source: Source, naming: Naming) -> str:
    """Returns the target; its path is relative if it is beside a relative input."""
    if naming.output or os.path.isabs(source.name):
        return str(target)
    return str(pathlib.Path(source.name).parent / target.name)
