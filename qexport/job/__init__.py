"""One run as options: nouns, parsing, rules."""
