"""Training of both stages: the loop, its steps, and how they are distributed."""
