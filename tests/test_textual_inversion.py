"""Textual inversion on a tiny real model: one row is learned, and all else stays."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from test_dreambooth import SETTINGS, changed, fresh, weights
from test_dreambooth import train as train_dreambooth
from test_loop import full_disk
from test_training import stripes

from stylenb import StylenbError, dreambooth
from stylenb.loop import NotFinite, TrainingStopped
from stylenb.textual_inversion import (
    EmbeddingSettings,
    embeddings,
    load_embedding,
    remove_embedding,
    save_embedding,
    train_embedding,
)

WORD = EmbeddingSettings(
    steps=4, batch_size=2, learning_rate=0.1, warmup=2, prompt="a <style> b", initializer="c"
)


def learn(base, settings=WORD, pictures=4, **run):
    return train_embedding(base, stripes(pictures), "<style>", settings, progress=False, **run)


@pytest.fixture
def base(tiny):
    """The tiny model with a UNet and a text encoder of its own."""
    return fresh(tiny)


def test_one_row_is_learned_and_all_else_stays_bit_for_bit(base, tmp_path):
    before, plain = weights(base), base.embed("a b c")
    table = next(n for n in before if n.endswith("token_embedding.weight"))
    begin = before[table][base.tokenizer("c", add_special_tokens=False)["input_ids"][0]]
    learn(base, replace(WORD, learning_rate=1e-7))
    assert torch.allclose(embeddings(base)["<style>"], begin, atol=1e-5)
    history = learn(base, folder=tmp_path)
    assert history.finished
    after = weights(base)
    assert changed({**before, table: 0 * after[table]}, after) == {table}
    assert torch.equal(after[table][:-1], before[table])
    (token, embedding), *others = embeddings(base).items()
    assert token == "<style>" and not others and (embedding - begin).abs().mean() > 0.01
    assert torch.equal(base.embed("a b c"), plain)
    assert not any(p.requires_grad for p in base.text_encoder.parameters())
    # what was trained is what is used afterwards: the row in the table, not the parameter beside it
    assert not torch.equal(base.embed("a <style> b"), base.embed("a c b"))
    file = load_file(tmp_path / "learned_embeds.safetensors")
    assert list(file) == ["<style>"] and torch.equal(file["<style>"], embedding[None])
    remove_embedding(base, "<style>")
    assert not changed(before, weights(base)) and embeddings(base) == {}
    assert base.text_encoder.config.vocab_size == len(base.tokenizer) == len(before[table])


def test_plain_diffusers_reads_the_embedding(tiny_folder, base, tmp_path):
    learn(base, folder=tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.load_textual_inversion(str(tmp_path))
    states, _ = pipe.encode_prompt("a <style> b", "cpu", 1, False)
    assert torch.equal(states, base.embed("a <style> b"))
    assert not torch.equal(states, base.embed("a c b"))


def test_embeddings_are_loaded_and_removed_one_by_one(tiny, base, tmp_path):
    learn(base)
    first = save_embedding(base, tmp_path / "first.safetensors", "<style>")
    save_file({"<other>": torch.randn(768)}, tmp_path / "other.safetensors")
    expected = {p: base.embed(p) for p in ("a <style> b", "a b")}
    own = fresh(tiny)
    assert load_embedding(own, tmp_path / "other.safetensors") == "<other>"
    assert load_embedding(own, first) == load_embedding(own, first) == "<style>"
    assert list(embeddings(own)) == ["<other>", "<style>"]
    remove_embedding(own, "<other>")
    assert list(embeddings(own)) == ["<style>"]
    for prompt, states in expected.items():
        assert torch.equal(own.embed(prompt), states)
    assert torch.equal(embeddings(own)["<style>"], embeddings(base)["<style>"])
    learn(own)  # learned afresh, not from where it was
    assert torch.equal(embeddings(own)["<style>"], embeddings(base)["<style>"])


def test_a_file_that_does_not_name_its_token_gives_it_its_own_name(base, tmp_path):
    vector = torch.randn(1, 768, generator=torch.Generator().manual_seed(1))
    save_file({"emb_params": vector}, tmp_path / "mystyle.safetensors")
    assert load_embedding(base, tmp_path / "mystyle.safetensors") == "mystyle"
    assert torch.equal(embeddings(base)["mystyle"], vector[0])
    save_file({"clip_l": vector, "clip_g": torch.ones(1, 1280)}, tmp_path / "xl.safetensors")
    with pytest.raises(StylenbError, match="an embedding for Stable Diffusion XL"):
        load_embedding(base, tmp_path / "xl.safetensors")


def test_an_embedding_that_does_not_fit_is_refused(base, tmp_path):
    cases = {
        "narrow": ({"<a>": torch.zeros(32)}, "an embedding of 32 numbers, expected are 768"),
        "nan": ({"<a>": torch.full((1, 768), float("nan"))}, "expected are 768 finite ones"),
        "two vectors": ({"<a>": torch.zeros(2, 768)}, "not the embedding of one token"),
        "two tokens": ({"<a>": torch.zeros(768), "<b>": torch.zeros(768)}, "2 tensors"),
        "a word": ({"c": torch.zeros(768)}, "'c' is a token of the base already"),
        "spaces": ({"a b": torch.zeros(768)}, "a word without spaces"),
        "a number": ({"<a>": torch.tensor(1.0)}, "an embedding of 1 numbers, expected are 768"),
    }
    before = weights(base)
    for case, (tensors, message) in cases.items():
        save_file(tensors, tmp_path / "file.safetensors")
        with pytest.raises(StylenbError, match=message):
            load_embedding(base, tmp_path / "file.safetensors")
        assert not changed(before, weights(base)) and embeddings(base) == {}, case
    save_file({"<a>": torch.zeros(768)}, tmp_path / "file.safetensors")
    load_embedding(base, tmp_path / "file.safetensors")
    save_file({"<a>": torch.ones(768)}, tmp_path / "file.safetensors")
    with pytest.raises(StylenbError, match="'<a>' is a token of the base already"):
        load_embedding(base, tmp_path / "file.safetensors")


# --- stopped on the way ---


def test_a_run_that_was_stopped_by_its_time_resumes(tiny, tmp_path):
    whole, base = fresh(tiny), fresh(tiny)
    learn(whole)
    assert not learn(base, folder=tmp_path, minutes=0).finished
    with pytest.raises(StylenbError, match="pictures was .* and is"):
        learn(base, pictures=5, folder=tmp_path)
    assert learn(base, folder=tmp_path).finished
    assert not changed(weights(base), weights(whole))


def test_what_was_learned_stays_in_the_base_when_it_cannot_be_saved(tiny, tmp_path):
    whole, base = fresh(tiny), fresh(tiny)
    learn(whole)
    sentence = "embeds.safetensors' cannot be written.*still in the base: save it with .*embedding"
    with pytest.warns(UserWarning, match="was not saved"), full_disk():
        with pytest.raises(TrainingStopped, match=sentence):
            learn(base, folder=tmp_path)
    assert not changed(weights(base), weights(whole)) and list(embeddings(base)) == ["<style>"]
    assert save_embedding(base, tmp_path / "elsewhere.safetensors", "<style>").is_file()


def test_the_last_good_embedding_survives_a_loss_that_is_not_finite(base, monkeypatch):
    calls = []

    def poisoned(*args, noise_loss=dreambooth.noise_loss):
        calls.append(1)
        return noise_loss(*args) * (float("nan") if len(calls) == 3 else 1)

    number = base.tokenizer("c", add_special_tokens=False)["input_ids"][0]
    begin = base.text_encoder.get_input_embeddings().weight[number].clone()
    monkeypatch.setattr(dreambooth, "noise_loss", poisoned)
    with pytest.raises(NotFinite, match="at step 2; the weights of step 1 are kept"):
        learn(base, checkpoint_every=1)
    learned = embeddings(base)["<style>"]
    assert learned.isfinite().all() and not torch.equal(learned, begin)


def test_any_other_error_leaves_the_base_as_it_was(base, monkeypatch):
    before = weights(base)
    monkeypatch.setattr(dreambooth, "noise_loss", None)
    with pytest.raises(TypeError):
        learn(base)
    assert embeddings(base) == {} and not changed(before, weights(base))


# --- what suits which base; bad calls ---


def test_the_usual_settings_follow_the_base(base):
    assert EmbeddingSettings.for_base(base) == EmbeddingSettings()
    base.image_size = 512
    assert EmbeddingSettings.for_base(base).batch_size == 1


def drop(base):
    base.drop_text_encoder()
    return base


def with_trained_encoder(base):
    train_dreambooth(base, replace(SETTINGS, steps=1, text_encoder=True))
    return base


BAD = {
    "few pictures": (lambda b: learn(b, pictures=2), "needs at least 3 pictures"),
    "no text encoder": (lambda b: learn(drop(b)), "The text encoder was dropped"),
    "no such word": (lambda b: save_embedding(b, "x", "<style>"), "No token '<style>' was added"),
    "none to remove": (lambda b: remove_embedding(b, "<style>"), "No token '<style>' was added"),
    "not in the prompt": (lambda b: learn(b, replace(WORD, prompt="a b")), "not in the prompt"),
    "initializer": (lambda b: learn(b, replace(WORD, initializer="cd")), "'cd' is 2 tokens"),
    "trained encoder": (lambda b: learn(with_trained_encoder(b)), "undo_dreambooth.base. before"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_call_is_one_sentence(case, base):
    call, message = BAD[case]
    with pytest.raises(StylenbError, match=message):
        call(base)
    assert embeddings(base) == {}
