"""Training: data in lanes, tasks, and the command line behind `tttstream fit`. The only package with Lightning."""
