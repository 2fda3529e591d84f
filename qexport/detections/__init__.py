"""What a head's outputs mean: layout, decode, suppression, matching, agreement. NumPy alone.

The float decode inside a program is in `qexport.programs`; `qexport.decode` is the public name of this one.
"""
