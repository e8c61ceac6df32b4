"""Time per step, ours beside the peers' on the same work: `python -m experiments.bench`."""
