"""The page of a run: figures, curves, dialogues."""
