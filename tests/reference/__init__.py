"""Independent PyTorch oracle: the editors written plainly over Hugging Face models, for tests and timing."""
