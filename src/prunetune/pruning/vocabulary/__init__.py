"""A smaller vocabulary: which tokens stay, the tokenizer of these alone, and the model folder that goes with it.

    tokenizer = TokenizerFile.read(folder)                  # BPE, of either kind; others are refused
    kept = choose(tokenizer, counts, rows=config.vocab_size, align=64)
    text = tokenizer.cut(kept)                              # tokenizer.json of the kept tokens, with new ids

Text whose tokens are all kept is cut into the same tokens as before (`merges` says why); any other text still goes in
and comes out as it did, in more tokens.

Others take `tokenizer.TokenizerFile`, `keep.choose` and `folder`.
To add a kind of tokenizer: `tokenizer._refused`, and what it must keep in `keep.needed`.
"""
