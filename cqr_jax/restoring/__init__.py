"""Restores images and image files with the shipped weights.

`cqr_jax.restore` takes arrays and Pillow images. The command `cqr-restore`, also run as
`python -m cqr_jax.restoring`, takes files. Neither needs the packages of training.
"""
