"""Parts of networks: adapters, LoRA, fusion, state-space blocks, guidance, decoders; and weights from files of others."""
