"""The command line: options, error lines and exit codes, and all that is printed."""
