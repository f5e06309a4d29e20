"""Parts of networks: adapters, LoRA, fusion, state-space blocks, guidance, decoders; tensors, never files."""
