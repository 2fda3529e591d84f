"""From program and plan to a file, for any runtime: what a backend is asked to write, metadata, what is read back."""
