"""Other people's formats: torchgeo, checkpoints of papers' authors, and models that run without landfuse."""
