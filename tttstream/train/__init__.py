"""Training: video data in lanes, tasks, and the command line behind `tttstream fit`. The only room with Lightning."""
