"""Data sets, labels and images: what is calibrated on and scored on, and how an image becomes an input."""
