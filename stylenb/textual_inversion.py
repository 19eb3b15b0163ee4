"""Textual inversion: one new word, and nothing else, is learned (https://arxiv.org/abs/2208.01618).

The text encoder's table of embeddings gets one more row. That row is trained on the same loss and
the same loop as everything else; all weights of the base stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from .base import Base, fingerprint
from .dreambooth import prompted_redraw, set_losses
from .errors import StylenbError
from .folders import Pictures, open_pictures
from .limits import Positive, as_path
from .loop import History, LoopSettings, Run, TrainingStopped
from .lora_files import write_safetensors
from .training import check_pictures, digest, encode, train
from .weights import open_safetensors


@dataclass(frozen=True)
class EmbeddingSettings(LoopSettings):
    """How `train_embedding` trains; `for_base` knows what suits a base."""

    learning_rate: Positive = 2e-2
    prompt: str = "a <style> painting"  # with the new token in it
    initializer: str = "painting"  # a word whose embedding it begins as

    @staticmethod
    def defaults_for(base: Base, changes: dict) -> dict:
        if not base.full_size:
            return {}
        return {
            "steps": 2000,
            "batch_size": 1,
            "gradient_accumulation_steps": 4,
            "learning_rate": 2e-3,  # 5e-4 for each picture of an update
            "gradient_checkpointing": True,
        }


def train_embedding(
    base: Base,
    pictures: Pictures,
    token: str = "<style>",
    settings: EmbeddingSettings | None = None,
    **run,
) -> History:
    """Learn the embedding of one new token from a few pictures; it is left in the base.

    pictures: 3 or more, see `folders.open_pictures`. settings: None is
    EmbeddingSettings.for_base(base) with the token in the prompt. run: folder, minutes, validation,
    ..., see loop.Run; validation photos are redrawn with the prompt. With a folder,
    `learned_embeds.safetensors` and `history.json` are written there, and a run that was cut
    resumes from its last checkpoint when it is started again.

    A token that was trained or loaded before is learned afresh. All other weights stay bit for bit.
    Raises StylenbError for a token that is a word already, or not in the prompt, an initializer
    that is not one token, fewer than 3 pictures, and see `training.train` and `loop.fit`.
    """
    settings = settings or EmbeddingSettings.for_base(base, prompt=f"a {token} painting")
    run, (pictures,) = Run(**run), open_pictures(base, pictures)
    check_pictures("Textual inversion", pictures, 3)
    table = _table(base)
    begin = base.tokenizer(settings.initializer, add_special_tokens=False)["input_ids"]
    if len(begin) != 1:
        raise StylenbError(
            f"The initializer {settings.initializer!r} is {len(begin)} tokens to this base: choose "
            "one common word."
        )
    about = {"method": "textual inversion", "base": base.name, "fingerprint": fingerprint(base)}
    about |= {"token": token, "pictures": digest(pictures)}
    run.refuse_other(settings, about)
    latents = encode(base, pictures, settings.flip)[1]

    def losses_of(batch: int) -> dict[str, torch.Tensor]:
        states = partial(base.embed, settings.prompt)
        return {"noise": set_losses(base, settings, [latents], states, batch)[0]}

    def save(path: Path, about: dict) -> None:
        _save(path, token, row, about)

    draw = prompted_redraw(base, settings.prompt)
    with _new_row(base, token, table.weight[begin[0]]) as row:
        if token not in base.tokenizer.tokenize(settings.prompt):
            raise StylenbError(
                f"The token {token!r} is not in the prompt {settings.prompt!r}: put it there."
            )
        return train(base, losses_of, settings, {}, run, "learned_embeds", about, draw, save)


@contextmanager
def _new_row(base: Base, token: str, begin: torch.Tensor) -> Iterator[torch.nn.Parameter]:
    """Inside, the table of embeddings has one more row, which is a parameter of its own, in
    float32, so that the table can stay frozen and half. Afterwards the row is what it came to; or
    the token is gone, if nothing was learned."""
    if token in embeddings(base):
        remove_embedding(base, token)
    number = _add(base, token, begin)
    table = _table(base)
    row = torch.nn.Parameter(begin.detach().float().clone())
    table.register_parameter("new_token", row)
    hook = table.register_forward_hook(
        lambda _, ids, found: torch.where((ids[0] == number)[..., None], row.to(found), found)
    )
    trained = False
    try:
        yield row
        trained = True
    except TrainingStopped:
        trained = True
        raise
    finally:
        hook.remove()
        del table.new_token
        if trained:
            table.weight.data[number] = row.detach().to(table.weight)
        else:
            remove_embedding(base, token)


def _table(base: Base) -> torch.nn.Embedding:
    """The text encoder's table of embeddings. Raises StylenbError once the encoder was dropped."""
    if base.text_encoder is None:
        raise StylenbError(
            "The text encoder was dropped to save memory: load the base again to use tokens."
        )
    return base.text_encoder.get_input_embeddings()


def embeddings(base: Base) -> dict[str, torch.Tensor]:
    """The tokens that were added to the base, and the embedding (C,) of each."""
    if base.text_encoder is None:
        return {}
    weight, known = _table(base).weight, base.tokenizer.vocab_size
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
    _table(base).weight.data[number] = embedding
    base.text_encoder.requires_grad_(False)
    return number


def _refuse_trained_encoder(base: Base) -> None:
    if any(name.startswith("text_encoder.") for name in base.originals):
        raise StylenbError(
            "DreamBooth has trained the text encoder: undo_dreambooth(base) before tokens are "
            "added or removed."
        )


def remove_embedding(base: Base, token: str) -> None:
    """Take an added token out again; the base is then what it was before, others stay.

    Raises StylenbError for a token that was not added.
    """
    kept = embeddings(base)
    if token not in kept:
        raise StylenbError(f"No token {token!r} was added to the base.")
    _refuse_trained_encoder(base)
    del kept[token]
    folder = str(base.folder / "tokenizer")
    base.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    base.text_encoder.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
    for other, embedding in kept.items():
        _add(base, other, embedding)


def save_embedding(base: Base, path: str | Path, token: str, about: dict | None = None) -> Path:
    """Write an added token as {token: (1, C)}, safetensors in float32, which diffusers'
    `load_textual_inversion` reads. Raises StylenbError for a token that was not added."""
    found = embeddings(base)
    if token not in found:
        raise StylenbError(f"No token {token!r} was added to the base, so there is none to save.")
    told = {"method": "textual inversion", "base": base.name}
    return _save(Path(path), token, found[token], told | (about or {}))


def _save(path: Path, token: str, embedding: torch.Tensor, about: dict) -> Path:
    return write_safetensors(path, {token: embedding.detach().cpu().float()[None]}, {}, about)


def load_embedding(base: Base, path: str | Path) -> str:
    """Add the token of a textual inversion file to the base; return the token.

    Loading what is there already does nothing. Raises StylenbError for a file that is not
    safetensors or not the embedding of one token, one of another width, and a token that means
    something else already. A file that does not name its token gives it the file's own name.
    """
    path, table = as_path(path), _table(base).weight
    with open_safetensors(path) as file:
        found = {key: file.get_tensor(key) for key in file.keys()}
    if found.keys() == {"clip_l", "clip_g"}:
        raise StylenbError(f"{path.name} is an embedding for Stable Diffusion XL: choose another.")
    token, embedding = next(iter(found.items()), ("", torch.empty(0)))
    token = path.stem if token == "emb_params" else token  # what A1111 and kohya call every one
    if len(found) != 1 or embedding.numel() != embedding.shape[-1:].numel():
        raise StylenbError(
            f"{path.name} is not the embedding of one token ({len(found)} tensors, the first "
            f"{tuple(embedding.shape)}): expected is one, of the shape (1, {table.shape[1]})."
        )
    embedding = embedding.flatten().float().to(base.device, base.dtype)
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
