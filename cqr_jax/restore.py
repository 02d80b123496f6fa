"""`python -m cqr_jax.restore`: see `cqr_jax.restoring.command`.

To be run and not imported, for `cqr_jax.restore` is a function.
"""

from cqr_jax.restoring.command import main

if __name__ == "__main__":
    main()
