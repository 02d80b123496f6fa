"""Restores images and image files with the shipped weights.

`cqr_jax.restore` takes arrays and Pillow images. The command `cqr-restore`, or `python -m
cqr_jax.restoring`, takes files. Neither needs the packages that training needs.
"""
