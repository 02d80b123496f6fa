"""Downloads the test sets of Table 2 and checks every image.

    python -m data_prep.test_sets --set_dir=data/eval

This command downloads the images of Classic5, LIVE1 and BSDS500 (534 images, about 60
MB) that are missing in SET_DIR, and checks every image. The images are for research
use. Never train on them.
"""

import argparse
import pathlib

from cqr_jax.data import jpeg, test_sets
from cqr_jax.errors import UserError, one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.test_sets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set_dir", default="data/eval", help="folder of all sets")
    set_dir = parser.parse_args().set_dir
    with one_line_errors():
        for name in test_sets.SETS:
            test_sets.fetch(name, set_dir)
            _check(name, test_sets.images(name, set_dir))


def _check(name: str, found: dict[str, pathlib.Path]) -> None:
    wanted = test_sets.expected(name)
    other = [k for k, p in found.items() if not wanted[k].is_equal(jpeg.load_named(p))]
    if other:
        raise UserError(
            f"{name}: {len(other)} of {len(found)} images differ from the "
            f"literature's, among them {found[other[0]]}; remove them, and run this "
            "command again"
        )
    print(f"{name}: {len(found)} images, all as expected")


if __name__ == "__main__":
    main()
