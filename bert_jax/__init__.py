"""BERT in JAX: raw text in, a resumable BERT out."""
