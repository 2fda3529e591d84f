"""Coral Edge TPU: integer-only files against the compiler's documented limits, and the compiler."""
