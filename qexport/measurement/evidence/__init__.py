"""Where a loss comes from: intervals, histograms, layers, pictures."""
