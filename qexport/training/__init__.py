"""Quantisation-aware training: images, the student that learns, losses, the loop, and what is kept of it."""
