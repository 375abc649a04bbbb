"""Language models, from scratch or pretrained, and how packed rows go through them."""
