"""Textual inversion: one new word, and nothing else, is learned (https://arxiv.org/abs/2208.01618).

The text encoder's table of embeddings gets one more row. That row is trained on the same loss and
the same loop as everything else; all weights of the base stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from .base import Base, fingerprint
from .dreambooth import _originals, prompted_redraw, set_losses
from .errors import StylenbError
from .lora import _open
from .training import History, LoopSettings, NotFinite, digest, encode, fit, refuse_other_run


@dataclass(frozen=True)
class EmbeddingSettings(LoopSettings):
    """How `train_embedding` trains; `for_base` knows what suits a base."""

    learning_rate: float = 2e-2
    prompt: str = "a <style> painting"  # with the new token in it
    initializer: str = "painting"  # a word whose embedding it begins as

    @staticmethod
    def _usual(base: Base, changes: dict) -> dict:
        if not base.full_size:
            return {}
        return {
            "steps": 2000,
            "batch_size": 1,
            "accumulate": 4,
            "learning_rate": 2e-3,  # 5e-4 for each picture of an update
            "gradient_checkpointing": True,
        }


def train_embedding(
    base: Base,
    pictures: Sequence,
    token: str = "<style>",
    settings: EmbeddingSettings | None = None,
    **how,
) -> History:
    """Learn the embedding of one new token from a few pictures; it is left in the base.

    pictures: PIL pictures of the base's size, 3 or more. settings: see EmbeddingSettings; None is
    EmbeddingSettings.for_base(base) with the token in the prompt. how: folder, minutes, validation,
    ... as `training.fit` takes them; validation photos are redrawn with the prompt. With a folder,
    `learned_embeds.safetensors` and `history.json` are written there, and a run that was cut goes
    on from its last checkpoint when it is started again.

    A token that was trained or loaded before is learned afresh. All other weights stay bit for bit.
    Raises StylenbError for a token that is a word already, or not in the prompt, an initializer
    that is not one token, fewer than 3 pictures, and see `fit`.
    """
    settings = settings or EmbeddingSettings.for_base(base, prompt=f"a {token} painting")
    pictures = list(pictures)
    if len(pictures) < 3:
        raise StylenbError(
            f"Textual inversion needs at least 3 pictures, better 16; these are {len(pictures)}."
        )
    if base.text_encoder is None:
        raise StylenbError(
            "The text encoder was dropped to save memory: load the base again to train a token."
        )
    begin = base.tokenizer(settings.initializer, add_special_tokens=False)["input_ids"]
    if len(begin) != 1:
        raise StylenbError(
            f"The initializer {settings.initializer!r} is {len(begin)} tokens to this base: choose "
            "one common word."
        )
    about = {
        "method": "textual inversion",
        "base": base.name,
        "fingerprint": fingerprint(base),
        "token": token,
        "pictures": digest(pictures),
    }
    refuse_other_run(how.get("folder"), {**asdict(settings), **about})
    latents = encode(base, pictures, settings.flip)[1]
    if token in embeddings(base):
        remove_embedding(base, token)
    table = base.text_encoder.get_input_embeddings()
    number = _add(base, token, table.weight[begin[0]])
    if number not in base.tokenizer(settings.prompt)["input_ids"]:
        remove_embedding(base, token)
        raise StylenbError(
            f"The token {token!r} is not in the prompt {settings.prompt!r}: put it there."
        )

    # The row is trained as a parameter of its own, in float32: the table can stay frozen and half.
    table = base.text_encoder.get_input_embeddings()
    row = torch.nn.Parameter(table.weight[number].detach().float().clone())
    table.register_parameter("new_token", row)
    hook = table.register_forward_hook(
        lambda _, ids, found: torch.where((ids[0] == number)[..., None], row.to(found), found)
    )

    def losses_of(batch: int) -> dict[str, torch.Tensor]:
        states = partial(base.embed, settings.prompt)
        return {"noise": set_losses(base, settings, [latents], states, batch)[0]}

    draw = prompted_redraw(base, settings.prompt)
    trained = False
    try:
        history = fit(base, losses_of, settings, {}, about=about, draw=draw, **how)
        trained = True
    except NotFinite:
        trained = True  # up to the last good embedding
        raise
    finally:
        hook.remove()
        del table.new_token
        if trained:
            table.weight.data[number] = row.detach().to(table.weight)
        else:
            remove_embedding(base, token)
    if how.get("folder"):
        about |= {"settings": asdict(settings), "seconds": round(history.seconds)}
        _save(Path(how["folder"]) / "learned_embeds.safetensors", token, row, about)
    return history


def embeddings(base: Base) -> dict[str, torch.Tensor]:
    """The tokens that were added to the base, and the embedding (C,) of each."""
    if base.text_encoder is None:
        return {}
    weight = base.text_encoder.get_input_embeddings().weight
    known = base.tokenizer.vocab_size
    added = sorted(base.tokenizer.get_added_vocab().items(), key=lambda item: item[1])
    return {token: weight[number].clone() for token, number in added if number >= known}


def _add(base: Base, token: str, embedding: torch.Tensor) -> int:
    """Give the tokenizer one more token and the table one more row; return its number."""
    _refuse_trained_encoder(base)
    if not isinstance(token, str) or not token or token.split() != [token]:
        raise StylenbError(f"A token is a word without spaces, such as '<style>', not {token!r}.")
    if len(base.tokenizer(token, add_special_tokens=False)["input_ids"]) == 1:
        raise StylenbError(
            f"{token!r} is a token of the base already: choose another one, such as '<my-style>'."
        )
    base.tokenizer.add_tokens(token)
    number = base.tokenizer.convert_tokens_to_ids(token)
    embedding = embedding.detach().clone()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        base.text_encoder.resize_token_embeddings(number + 1, mean_resizing=False)
    base.text_encoder.get_input_embeddings().weight.data[number] = embedding
    base.text_encoder.requires_grad_(False)
    return number


def _refuse_trained_encoder(base: Base) -> None:
    if _originals(base.text_encoder):
        raise StylenbError(
            "DreamBooth has trained the text encoder: undo_dreambooth(base) before tokens are "
            "added or removed."
        )


def remove_embedding(base: Base, token: str) -> None:
    """Take an added token out again; the base is then what it was before, others stay.

    Raises StylenbError for a token that was not added.
    """
    from transformers import CLIPTokenizer

    kept = embeddings(base)
    if token not in kept:
        raise StylenbError(f"No token {token!r} was added to the base.")
    _refuse_trained_encoder(base)
    del kept[token]
    base.tokenizer = CLIPTokenizer.from_pretrained(
        str(base.folder / "tokenizer"), local_files_only=True
    )
    base.text_encoder.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
    for other, embedding in kept.items():
        _add(base, other, embedding)


def save_embedding(base: Base, path: str | Path, token: str, about: dict | None = None) -> Path:
    """Write an added token as {token: (1, C)}, safetensors in float32, which diffusers'
    `load_textual_inversion` reads. Raises StylenbError for a token that was not added."""
    found = embeddings(base)
    if token not in found:
        raise StylenbError(f"No token {token!r} was added to the base, so there is none to save.")
    about = {"method": "textual inversion", "base": base.name, **(about or {})}
    return _save(Path(path), token, found[token], about)


def _save(path: Path, token: str, embedding: torch.Tensor, about: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    tensor = embedding.detach().cpu().float()[None].contiguous()
    save_file({token: tensor}, temporary, {"format": "pt", "stylenb": json.dumps(about)})
    temporary.replace(path)
    return path


def load_embedding(base: Base, path: str | Path) -> str:
    """Add the token of a textual inversion file to the base; return the token.

    Loading what is there already does nothing. Raises StylenbError for a file that is no
    safetensors or no embedding of one token, one of another width, and a token that means
    something else already.
    """
    path = Path(path)
    with _open(path) as file:
        found = {key: file.get_tensor(key).float() for key in file.keys()}
    if base.text_encoder is None:
        raise StylenbError("The text encoder was dropped: load the base again to add a token.")
    token, embedding = next(iter(found.items()), ("", torch.empty(0)))
    if len(found) != 1 or embedding.numel() != embedding.shape[-1]:
        raise StylenbError(
            f"{path.name} is not the embedding of one token ({len(found)} tensors, the first "
            f"{tuple(embedding.shape)}): expected is one, of the shape (1, "
            f"{base.unet.config.cross_attention_dim})."
        )
    embedding = embedding.flatten().to(base.device, base.dtype)
    table = base.text_encoder.get_input_embeddings().weight
    if len(embedding) != table.shape[1] or not embedding.isfinite().all():
        raise StylenbError(
            f"{path.name} does not fit the base {base.name!r} (an embedding of {len(embedding)} "
            f"numbers, expected are {table.shape[1]} finite ones): load the base that it was "
            "trained for."
        )
    present = embeddings(base).get(token)
    if present is None or not torch.equal(present, embedding):
        _add(base, token, embedding)
    return token
