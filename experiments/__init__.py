"""One small file per experiment: `base.py` has every option at its default, the others change a few of them."""
