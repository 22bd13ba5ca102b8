"""The training shell: data, tokenizer, checkpoints, loop, evaluation, and `siglip-train`."""
