"""Models of the Hugging Face Hub, by name."""

import logging
import re
from pathlib import Path

from bert_jax.config import UserError

NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?$")
SMALL = ["*.json", "vocab.txt", "1_*/config.json", "2_*/config.json", "3_*/config.json"]
SECONDS = 5  # to wait for an answer


def is_name(source: str) -> bool:
    return NAME.match(source) is not None


def fetch(name: str) -> Path:
    """Returns the folder, in Hugging Face's cache, with the files of a model that are needed here; fetches what it
    lacks. Raises UserError if there is no such model, or no network."""
    import huggingface_hub
    from huggingface_hub import errors

    for noisy in ("huggingface_hub", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    local = f"fetch it elsewhere (`hf download {name}`) and give the folder"
    try:
        for weights in ("*.safetensors", "pytorch_model*.bin"):
            patterns = [*SMALL, weights]
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, etag_timeout=SECONDS))
            if any(folder.rglob(weights)):
                break
    except errors.GatedRepoError:
        raise UserError(f"{name}: the Hub asks for a login to this model; {local}") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UserError(f"{name} is neither a folder nor a model of the Hugging Face Hub") from None
    except Exception as problem:  # errors of its HTTP library, whichever that is, come through as they are
        why = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise UserError(
            f"{name} is no folder, and the Hugging Face Hub cannot be reached ({why[:160]}); {local}"
        ) from None
    return folder
