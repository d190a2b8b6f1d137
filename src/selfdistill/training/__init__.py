"""The training loop: sample, score, credit, update, record, save."""
