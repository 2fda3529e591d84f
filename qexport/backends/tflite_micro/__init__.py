"""TFLite Micro."""
