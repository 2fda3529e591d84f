"""The steps of one artifact as verbs on nouns: read, calibrate, plan, lower, verify; and all of them in a row."""
