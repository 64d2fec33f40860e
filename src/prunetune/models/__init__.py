"""One model: where a family keeps what can be cut, a folder found and loaded, shards, cost, prompts, generation.

Others take `folders.resolve_model` and `folders.load_model`, `families.family_of`, `cost.cost_of`, `prompt.prompt_ids`.
To add a family: one entry in `families.FAMILIES`, and its config in `tests/tiny.py`.
"""
