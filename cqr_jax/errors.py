"""Exception for mistakes that the user can fix.

Its message is a single line that says what is wrong, where, and how to fix it. The
command lines print that line and exit with a non-zero code. Other errors keep their
traceback, except for Ctrl-C, a closed pipe and a full disk under standard output.
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Raised for a mistake in the input, the config or the files."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Exits with a message that names the extra if an import in the context fails.

    Use it to import packages that only an extra of setup.cfg installs.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: the package {error.name} is missing; pip install "
            f"'cqr_jax[{name}]', in the repository pip install -e '.[{name}]'"
        )


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints a `UserError` in the context on one line of standard error; exits with 1.

    Ctrl-C prints one line too and exits with the shell's code for it. If the reader of
    the output closes the pipe, as `head` does, nothing is printed. A full disk under
    standard output is one line.
    """
    try:
        yield
        with standard_output():
            if sys.stdout:
                sys.stdout.flush()
    except UserError as error:
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        _discard_output()
        raise SystemExit(128 + signal.SIGPIPE) from None


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Turns a full disk under standard output into a `UserError`.

    Python writes long texts in the call of `print`, and short ones at the end.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        raise UserError(f"standard output: {error.strerror}") from None


def _discard_output() -> None:
    """Discards output that is not flushed, which Python would flush at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
