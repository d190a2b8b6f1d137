"""A model in use: the journal of its exchanges, the conversations they belong to, and the versions it was served in.

Imports neither torch nor transformers: the journal is read without a model.
"""
