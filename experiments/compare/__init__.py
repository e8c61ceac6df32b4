"""Methods, ranks and targets side by side: `python -m experiments.compare`."""
