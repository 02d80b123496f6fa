"""Runs `cqr-restore` as `python -m cqr_jax.restoring`."""

from cqr_jax.restoring.command import main

if __name__ == "__main__":
    main()
