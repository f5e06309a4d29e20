"""What belongs together: a scene with its modalities, labels and split; scene files, checks, benchmarks, maps."""
