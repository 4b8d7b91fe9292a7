"""From records to rows: reading, conversations, streams and batches. Knows nothing of the model or the objective."""
