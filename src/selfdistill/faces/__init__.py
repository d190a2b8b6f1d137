"""Programs for a terminal that talk to the endpoint: a conversation, and a small coding agent."""
