"""Restoring image files, big and small, with the weights that are shipped."""
