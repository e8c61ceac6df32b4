"""Reward hacking made visible: `python -m experiments.overoptimisation`."""
