"""WING 1: what is on disk; numpy, never torch."""
