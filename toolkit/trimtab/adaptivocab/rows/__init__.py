"""New rows of the embedding and of the head, and a model that has them."""
