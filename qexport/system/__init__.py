"""This machine and process: files, temporary folders, signals, CPU."""
