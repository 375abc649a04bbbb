"""Corpora in their true on-disk layouts: folders and annotation files to source items."""
