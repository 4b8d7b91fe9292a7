"""Where records come from: JSON, tables, tar archives, and mixtures of them."""
