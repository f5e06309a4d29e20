"""A recipe becomes a run: samples, the Lightning task, fitting, the run folder."""
