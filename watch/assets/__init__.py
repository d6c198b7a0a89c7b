"""Files of the pages, served or inlined as they stand: uPlot 1.6.32 (uPlot.LICENSE), our charts and their style."""
