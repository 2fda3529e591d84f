"""Detections: what a head's outputs mean, decoding, suppression, matching. NumPy alone."""
