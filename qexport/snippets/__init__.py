"""Programs that run an artifact without qexport: what they have to know of it, and their text in four languages."""
