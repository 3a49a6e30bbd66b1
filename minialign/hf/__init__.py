"""What the world has, for our Transformer: model folders, tokenizers, data files, adapters."""
