"""Offline scores with their baselines: events in surprise, spliced videos, masks on DAVIS."""
