"""The report, its warnings, its renderings (page, Markdown, JUnit XML), and the gate and baseline that read it.

Figures are measured in `qexport.measurement`; the terminal's table is in `qexport.cli`.
"""
