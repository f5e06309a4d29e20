"""Other people's formats: torchgeo, and models that run without landfuse."""
