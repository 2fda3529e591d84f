"""What hooks qexport into other programs' loops."""
