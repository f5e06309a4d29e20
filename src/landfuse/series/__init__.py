"""Rasters of one place at many dates, read as one raster: dates and periods, composites, gaps, features."""
