"""What a run of a sweep is where it runs: its process, its record, and its turn to measure."""
