"""Text in, batches out, one room per step: `text` → `tokenizers` → `pretraining` or `labelled` → `batching`."""
