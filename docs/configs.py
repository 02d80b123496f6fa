"""Generates tables in Markdown of the fields of all config files.

    python -m docs.configs > docs/configs.md

The explanation of a field is the comment after its assignment or in the lines above it,
in its config file or in configs/common.py. The values are those of the presets.
"""

import ast
import importlib
import pathlib
import re
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cqr_jax.config import flat

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
FILES = ("deblock", "ranker", "eval", "ablation", "aot")
_ABSENT = "-"  # in place of a value
# Config files that change the config of another file.
_BASES = {"ablation": "deblock"}
# Names of imported config modules -> their files.
_MODULES = {"ranker": "ranker", "evaluation": "eval"}

_HEAD = f"""\
# Config fields

`--config=configs/FILE.py:PRESET` selects a config file and a preset. The default is the
first preset in the file's table. `--config.FIELD=VALUE` sets a field. A preset with an
empty cell has the value of the first preset. `{_ABSENT}` means that the preset does not
have the field.

`python -m docs.configs > docs/configs.md` generates this page from the config files and
their comments. Each table lists the fields that its file sets."""


class Row(NamedTuple):
    """A field that a config file sets, or a group of fields."""

    field: str  # dotted name
    values: tuple[str, ...]  # of each preset, in the syntax of the command line
    explanation: str


class _Assignment(NamedTuple):
    """The statement `c.FIELD = ...` in a config file."""

    field: str
    presets: tuple[str, ...]  # presets for which it runs
    comment: str
    source: str  # config file whose config is assigned, or ""


def page() -> str:
    """Returns the whole page: each file's docstring, followed by its table."""
    parts = [_HEAD]
    for file in FILES:
        words = _text(file).split('"""')[1]
        parts += [f"## configs/{file}.py", words.strip(), _table(file)]
    return "\n\n".join(parts) + "\n"


def rows(file: str) -> list[Row]:
    """Returns the fields that a config file sets, in its order, without `task`."""
    groups: dict[str, list[_Assignment]] = {}
    for found in _assignments(file, "get_config", presets(file)):
        groups.setdefault(found.field, []).append(found)
    del groups["task"]
    sources = {field: group[0].source for field, group in groups.items()}
    configs = [module(file).get_config(preset) for preset in presets(file)]
    values = [flat(config) for config in configs]
    changed = {row.field for row in rows(_BASES[file])} if file in _BASES else set()
    table = []
    for field, group in groups.items():
        outer = sources.get(field.split(".")[0])
        is_inherited = field in changed and not outer
        inherited = f"as in {_link(_BASES[file])}" if is_inherited else ""
        explanation = _explanation(group, presets(file)[0], inherited)
        if source := sources[field]:
            taken = _taken(configs[0], field, source)
            explanation = f"{explanation}; {taken}" if explanation else taken
        elif outer and not explanation:
            explanation = f"as in {_link(outer)}"
        is_group = isinstance(configs[0].get(field), ConfigDict)
        if explanation or not is_group:
            cells = ("" if is_group else _shown(x.get(field, _ABSENT)) for x in values)
            table.append(Row(field, tuple(cells), explanation))
    return table


def module(file: str) -> types.ModuleType:
    """Imports `configs/FILE.py`."""
    return importlib.import_module(f"configs.{file}")


def presets(file: str) -> tuple[str, ...]:
    """Returns the presets of a config file, the default first.

    A file without presets has those of deblock.
    """
    return getattr(module(file), "PRESETS", None) or presets("deblock")


def _text(file: str) -> str:
    return (FOLDER / f"{file}.py").read_text()


def _table(file: str) -> str:
    head = ("field", *presets(file), "")
    lines = [head, ("---",) * len(head)]
    for field, (first, *others), explanation in rows(file):
        changed = ("" if value == first else value for value in others)
        lines.append((f"`{field}`", first, *changed, explanation.replace("|", r"\|")))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if value == _ABSENT:
        return value
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f"`{value}`" if value != "" else '`""`'


def _explanation(group: list[_Assignment], default: str, inherited: str) -> str:
    """Joins the comments of a field's assignments, the default preset's first.

    `inherited` stands in place of a missing comment of the default preset.
    """
    found: dict[str, tuple[str, ...]] = {}
    for assignment in group:
        if comment := assignment.comment:
            found[comment] = (*found.get(comment, ()), *assignment.presets)
    comments = sorted(found, key=lambda comment: default not in found[comment])
    general = comments and (default in found[comments[0]] or not inherited)
    first = comments.pop(0) if general else inherited
    return "; ".join([first, *(f"preset {', '.join(found[x])}: {x}" for x in comments)])


def _taken(config: ConfigDict, group: str, file: str) -> str:
    """Describes the fields that a group has from a config file.

    It also names those whose values follow the fields of `config`.
    """
    taken = flat(config[group])
    configs = (module(file).get_config(preset) for preset in presets(file))
    offered = {field for found in configs for field in flat(found)}
    names = "all fields" if set(taken) == offered - {"task"} else _list(taken)
    follow = [field for field in taken if _follows(config, group, field)]
    words = f"{names} of {_link(file)}"
    if follow:
        words += f", where {_list(follow)} follow the fields of the same names here"
    return words


def _follows(config: ConfigDict, group: str, field: str) -> bool:
    """Returns whether a group's field changes with the config's field of that name."""
    *groups, name = field.split(".")
    own, taken = config, config[group]
    for part in groups:
        own, taken = own.get(part, ConfigDict()), taken[part]
    if name not in own:
        return False
    value, before = own[name], taken[name]
    own[name] = not value if isinstance(value, bool) else value + type(value)("1")
    changes = taken[name] != before
    own[name] = value
    return changes


def _link(file: str) -> str:
    return f"[configs/{file}.py](#configs{file}py)"


def _list(fields: Iterable[str]) -> str:
    *rest, last = (f"`{field}`" for field in fields)
    return f"{', '.join(rest)} and {last}" if rest else last


def _assignments(
    file: str, function: str, names: tuple[str, ...], group: str = ""
) -> Iterator[_Assignment]:
    """Yields the assignments of a function, and of functions of common.py it calls."""
    text = _text(file)
    (definition,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    for statement, chosen in _statements(definition.body, names):
        code = ast.unparse(statement)
        if call := re.fullmatch(r"c\.update\(common\.(\w+)\(\)\)", code):
            yield from _assignments("common", call[1], chosen, group)
        elif found := re.fullmatch(r"c\.([\w.]+) = (.+)", code):
            field, value = group + found[1], found[2]
            source = re.match(r"(ranker|evaluation)\.get_config", value)
            yield _Assignment(
                field,
                chosen,
                _comment(statement, text.splitlines()),
                _MODULES[source[1]] if source else "",
            )
            if call := re.fullmatch(r"common\.(\w+)\(\)", value):
                yield from _assignments("common", call[1], chosen, f"{field}.")


def _comment(statement: ast.stmt, lines: list[str]) -> str:
    """Returns the comment after a statement, or else in the lines above it."""
    assert statement.end_lineno is not None
    if behind := lines[statement.end_lineno - 1].partition("  # ")[2]:
        return behind
    above = []
    for line in reversed(lines[: statement.lineno - 1]):
        if not line.lstrip().startswith("# "):
            break
        above.append(line.lstrip()[2:])
    return " ".join(reversed(above))


def _statements(
    body: list[ast.stmt], names: tuple[str, ...]
) -> Iterator[tuple[ast.Assign | ast.Expr, tuple[str, ...]]]:
    """Yields assignments and calls with the presets for which they run."""
    for node in body:
        match node:
            case ast.Assign() | ast.Expr():
                yield node, names
            case ast.If(
                test=ast.Compare(
                    left=ast.Name("preset"),
                    ops=[ast.Eq() | ast.In()],
                    comparators=[compared],
                )
            ):
                value = ast.literal_eval(compared)
                chosen = value if isinstance(value, tuple) else (value,)
                others = tuple(name for name in names if name not in chosen)
                yield from _statements(node.body, chosen)
                yield from _statements(node.orelse, others)
                if isinstance(node.body[-1], ast.Return):
                    names = others


if __name__ == "__main__":
    print(page(), end="")
