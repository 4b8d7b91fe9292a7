"""What a training step costs: operations, memory, and the plan printed before a run."""
