"""This machine and this process: CPU, files that appear whole or not at all, temporary folders, signals."""
