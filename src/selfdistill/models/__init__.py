"""Language models: loading them, sampling from them, the teacher's weights, and checkpoints."""
