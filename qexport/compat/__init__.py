"""Everything that is changed in other people's code and environment, with versions and reasons."""
