"""Encoded examples (`items.py`) in, batches out.

`batch_plan.py` decides which items share a batch (`batch_order.py`) and which shape it has (`shapes.py`); `batches.py`
makes it.
"""
