"""The embedded demo: a small reasoning model of our own (`model/`), its tokenizer and its problems.

Others take `problems.problems` and `tokenizer.byte_tokenizer`; the model is found by its name, `demo`.
To add a kind of problem: one function in `problems`; the model must then be trained anew (studies/train).
"""
