"""A model folder as a GGUF file, by the gguf package alone: architectures, tokenizer, tensors.

Others take `write.write_gguf`, `write.TYPES` and `architectures.architecture_of`.
To add an architecture: one entry in `architectures`; a tokenizer's way to split text: one in `tokenizer`.
"""
