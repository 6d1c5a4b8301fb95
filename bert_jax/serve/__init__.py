"""HTTP around inference: models answer JSON, a page tries them. `python -m bert_jax.serve runs/sst2`.

A request walks through `app` (who may ask, how much), `bodies` (what is asked), `worker` (the queue, which joins inputs
of several requests into batches) and `served` (a checkpoint and the routes that it has, which `routes` declares).
`server` listens, stops and keeps slow clients from holding it; `documents` describes the routes; page.html is the page.
"""
