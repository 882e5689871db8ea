"""Pictures of labels, predictions and losses, and the colours in them."""
