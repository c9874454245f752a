"""Files: atomic output files, names and presets, models as folders, and interruption of a run."""
