"""The command line: options, error lines, exit codes, and everything that is printed.

What an option means goes into `qexport.job`, what it does into the step that it concerns.
"""
