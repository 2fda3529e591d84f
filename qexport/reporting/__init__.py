"""The report, its renderings, and the gate that reads it."""
