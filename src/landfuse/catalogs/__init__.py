"""Catalogs of satellite images: which of their items become a scene, read where their files lie."""
