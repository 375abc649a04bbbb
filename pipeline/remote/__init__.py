"""Data sets and corpora at an address (`s3://`, `hf://`), mirrored in a folder of this machine.

Only an address that the user gave is ever reached; nothing that is read from a file becomes one. All work is
done in the local folder; `datasets` and `corpora` bring it there and back, `options` is the way in.
"""
