"""The doors: published checkpoints and adapters, in and out."""
