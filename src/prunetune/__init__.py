"""prunetune: make a reasoning language model half its size without losing its reasoning."""
