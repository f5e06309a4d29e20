"""A bundle and a scene become files: the engine, parts and resume, layers of a map, memory, clusters."""
