"""What is calibrated on and scored on: data sets, images, and how an image becomes an input."""
