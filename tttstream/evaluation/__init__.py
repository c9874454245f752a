"""What is scored off line, beside its baselines: events in surprise, spliced videos, masks on DAVIS."""
