"""One run as options: nouns, values brought into their types, rules that refuse a job before torch is imported."""
