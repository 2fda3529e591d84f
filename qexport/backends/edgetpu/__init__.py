"""Edge TPU."""
