"""Files: what is written whole or not at all, names and presets, models as folders, and how a run is interrupted."""
