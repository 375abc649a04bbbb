"""Engines: who runs the shares of `tokenize`. Each is a thin caller of `tokenization.tokenize_share`.

A job array calls it directly (`--task-index I --num-tasks N`), `local` starts processes, `ray_cluster` starts
tasks on an existing Ray cluster. What they leave unfinished, the next run does.
"""
