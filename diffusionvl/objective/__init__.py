"""Training maths: noise schedule, corruption and loss. Pure functions of tensors; imports torch only."""
