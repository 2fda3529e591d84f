"""What is taken of Matplotlib, imported without settings of the working directory, which may be anybody's."""

from __future__ import annotations

import os

from qexport.compat.patches import PLOT_SETTINGS, replaced

_exists = os.path.exists

with replaced(PLOT_SETTINGS, lambda path: path != "matplotlibrc" and _exists(path)):
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

__all__ = ["Axes", "Figure", "MaxNLocator", "PercentFormatter", "rcParams", "rc_context", "rcdefaults"]
