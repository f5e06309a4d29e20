"""Many runs: series, comparisons, ablations, reproductions, and what each modality gives."""
