"""Simulated scenes, and the demo that maps one."""
