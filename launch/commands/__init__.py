"""The commands, a module each: its docstring is its help, `add` describes its arguments, `run` does it.

Modules import at once what is light; torch, transformers and their like are imported inside `run`.
"""
