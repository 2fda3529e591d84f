"""The steps of one artifact as verbs on nouns: read, calibrate, plan, optimise, lower, verify; and all in a row."""
