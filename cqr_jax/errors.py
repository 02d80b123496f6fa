"""Exception for mistakes that the user can fix.

Its message is a single line that says what is wrong, where, and how to fix it. The
command lines print that line and exit with a non-zero code. Other errors keep their
traceback, except for Ctrl-C and a closed pipe.
"""

import contextlib
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
    the output closes the pipe, as `head` does, nothing is printed.
    """
    try:
        yield
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discard unflushed output
        raise SystemExit(128 + signal.SIGPIPE) from None
