"""The recipe: one YAML file that decides a whole run; its mistakes explained, its keys told, the shipped ones.

Others take `schema.Recipe`.
To add a key: one field with its docstring in the model that reads it; a recipe: one file in `shipped/`.
"""
