"""Encoded examples in, batches out.

A task encodes an example as an `Item` (`items.py`). `batch_plan.py` decides how items become batches: which items share
one (`batch_order.py`) and which shape it has (`shapes.py`); `batches.py` makes them.
"""
