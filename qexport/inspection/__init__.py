"""Files that exist already: manifest, samples and run folder, and the verbs `verify` and `diff`.

Checks of a new artifact are in `qexport.verification` and are used from here.
"""
