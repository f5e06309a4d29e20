"""WING 2: arithmetic on tensors; torch, never files."""
