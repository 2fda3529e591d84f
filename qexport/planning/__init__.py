"""Runtime profile and statistics → type, scale, zero point, group and a *why* for every tensor.

What a runtime can do is a table of `profile`; how a range is chosen stands in `ranges`, its name in `registry`. No
runtime is known by name.
"""
