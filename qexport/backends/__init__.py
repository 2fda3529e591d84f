"""The seam to runtimes, and one folder for each of them."""
