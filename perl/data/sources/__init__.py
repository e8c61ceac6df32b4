"""Where examples come from: published files through TFDS, their records, the layouts of rows."""
