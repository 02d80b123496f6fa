"""Describes what a benchmark runs with: its command, the machine and the packages."""

import os
import pathlib
import platform
import re
import shlex
import sys
from importlib import metadata

from cqr_jax.restoring import network

_PACKAGES = ("jax", "jaxlib", "flax", "tensorflow", "openvino", "pillow")
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of x86 processors


def command(**names: str) -> str:
    """Returns the command that started this process, `python -m MODULE ARGUMENTS`.

    Args:
      **names: NAME=VALUE for values of arguments and flags that their names replace.
    """
    module = sys.modules["__main__"].__spec__
    shown = {value: name for name, value in names.items()}

    def word(argument: str) -> str:
        flag, equals, value = "", "", argument
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
        return flag + equals + (shown.get(value) or shlex.quote(value) if value else "")

    words = map(word, sys.argv[1:])
    return " ".join(["python -m", module.name if module else "?", *words])


def describe() -> str:
    """Returns one line: processor, memory, system, Python and package versions."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    virtual = ", virtual" if re.search(r"flags\s*:.* hypervisor\b", info) else ""
    flags = re.search(r"flags\s*:(.*)", info)
    features = [x for x in _FEATURES if flags and x in flags[1].split()]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    processor = model[1] if model else platform.machine()
    parts = [
        f"{network.cores()} cores of {processor}{virtual}"
        + (f" ({', '.join(features)})" if features else ""),
        f"{memory:.0f} GiB of memory",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in _PACKAGES),
    ]
    return ", ".join(parts)


def _version(name: str) -> str:
    for distribution in (name, f"{name}-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            pass
    return "missing"
