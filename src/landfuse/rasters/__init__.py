"""Pixels on disk: grids, windows and the lattice, GeoTIFF and MATLAB files, polygons as codes; numpy, never torch."""
