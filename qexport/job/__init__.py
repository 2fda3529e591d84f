"""One run as options: nouns, values brought into their types, rules that refuse a job before torch is imported.

Nothing below `qexport.pipeline` and the command line knows a job: they hand on the values that a step needs.
"""
