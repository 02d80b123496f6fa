"""Restoring images and image files, big and small, with the weights that are shipped.

`cqr_jax.restore` is for arrays and Pillow's images in memory, `python -m
cqr_jax.restore` for files. Neither needs what training needs.
"""
