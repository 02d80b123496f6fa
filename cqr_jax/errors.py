"""The one exception that stands for a mistake the user can mend.

Its text is a single line that says what is wrong, where, and how to mend it. The
command lines print that line and exit with a non-zero code; nothing else is caught.
"""

import contextlib
import os
import signal
import sys


class UserError(Exception):
    """A mistake in the input, the config or the files, told in one line."""


@contextlib.contextmanager
def extra(name: str):
    """Around imports of packages that only an extra of setup.cfg brings: says which."""
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: the package {error.name} is missing; pip install "
            f"'cqr_jax[{name}]', in the repository pip install -e '.[{name}]'"
        )


@contextlib.contextmanager
def one_line_errors():
    """Prints a `UserError` as one line on standard error and exits with code 1.

    Ctrl-C likewise, with the shell's code for it. Where who reads the output has had
    enough, as `head` has, there is no line.
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be flushed
        raise SystemExit(128 + signal.SIGPIPE) from None
