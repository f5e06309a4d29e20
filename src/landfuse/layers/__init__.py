"""Parts of networks: adapters, LoRA, fusion, state-space blocks, guidance, decoders; weights from files of others."""
