"""The training shell: data, tokenizer, checkpoints, loop, evaluation and the command `siglip-train`."""
