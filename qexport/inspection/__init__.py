"""Questions about files that exist already: are they still what was verified, and how do two differ?"""
