"""Evaluation of deblockers and of the ranker."""
