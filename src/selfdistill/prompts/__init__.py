"""From tasks and contexts to the token ids that student and teacher read."""
