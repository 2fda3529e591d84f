"""From program and plan to files, whatever the runtime: simulation, tags, metadata, the second process."""
