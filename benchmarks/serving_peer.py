"""The other side of benchmarks/serving.py: sentence-transformers behind FastAPI, as tutorials set it up.

    python benchmarks/serving_peer.py FOLDER --port=8001 [--dtype=bfloat16|float32] [--library=sentence_transformers]

`POST /embed` takes {"inputs": [...]} and returns a vector of length 1 for each text, as ours does. A request is a batch
of its own: `encode` sorts its texts by length and pads each batch to its longest. Endpoints run in threads, one at a
time, since PyTorch uses all cores for each. `--library=transformers` does the same with AutoModel and mean pooling.
"""

import argparse
import importlib
import threading
from collections.abc import Callable
from typing import Any

import fastapi
import numpy as np
import pydantic
import torch
import uvicorn

Encode = Callable[[list[str]], np.ndarray]
LENGTH = 512  # tokens, as ours


class Body(pydantic.BaseModel):
    inputs: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--library", choices=("sentence_transformers", "transformers"), default="sentence_transformers")
    given = parser.parse_args()
    sides = {"sentence_transformers": sentence_transformers_side, "transformers": transformers_side}
    encode, lock, app = (
        sides[given.library](given.model, getattr(torch, given.dtype)),
        threading.Lock(),
        fastapi.FastAPI(),
    )

    @app.post("/embed")
    def embed(body: Body) -> Any:
        with lock:
            return encode(body.inputs).tolist()

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    encode(["a fine film"])
    uvicorn.run(app, port=given.port, log_level="warning", access_log=False)


def sentence_transformers_side(folder: str, dtype: torch.dtype) -> Encode:
    # No package of this project's extras brings it: pip install sentence-transformers
    model = importlib.import_module("sentence_transformers").SentenceTransformer(
        folder, device="cpu", model_kwargs={"dtype": dtype}
    )
    model.max_seq_length = LENGTH
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False).astype(np.float32)


def transformers_side(folder: str, dtype: torch.dtype) -> Encode:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=dtype).eval()

    def encode(texts: list[str]) -> np.ndarray:
        arrays = tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
        with torch.inference_mode():
            states = model(**arrays).last_hidden_state.float()
        mask = arrays["attention_mask"][:, :, None].float()
        means = (states * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(means).numpy()

    return encode


if __name__ == "__main__":
    main()
