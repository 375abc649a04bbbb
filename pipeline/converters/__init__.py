"""The only readers of foreign checkpoints: one module per kind of file.

Nothing in a checkpoint can run code; what is read is checked for names, shapes and finite values.
"""
