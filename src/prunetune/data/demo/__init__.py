"""The embedded demo: a small reasoning model of our own (`model/`), its tokenizer and its problems."""
