"""Does a new artifact hold its plan, does the runtime compute it, and are its outputs finite?

`verify` runs the checks; files that exist already are checked by `qexport.inspection` with the same functions.
"""
