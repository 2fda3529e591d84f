"""Models as archives: a graph with Q/DQ pairs and its metadata in one ZIP file."""
