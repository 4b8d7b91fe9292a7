"""What makes a translation good for its budget: the switches of training, compared on equal budgets."""
