"""What a run is: its fields, how they fit together, its files, when a finished one counts."""
