"""Where work runs: in this process or in a worker. What runs is decided by the pipeline."""
