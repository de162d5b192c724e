"""What people look at: sheets of samples, the plot of activation ranges, tables of figures, one HTML page."""
