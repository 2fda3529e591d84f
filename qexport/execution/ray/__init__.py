"""Tasks on a cluster of Ray, which is imported here alone, and where it is asked for."""
