"""A model in use: the endpoint, the journal of its exchanges, the conversations they belong to, and its versions.

The journal is read without a model: `answers`, `engine`, `server`, `service` and `weights` alone import torch.
"""
