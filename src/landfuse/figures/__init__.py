"""Pictures by matplotlib: of tables, arrays and scenes, and nothing else."""
