"""Exercise checks: right, unsolved, wrong and broken answers, and every listed mistake."""

import time

import pytest
import torch

from stylenb.checks import EXERCISES, check


@pytest.mark.parametrize("name", EXERCISES)
def test_reference_is_right_and_quick(name, capsys):
    def answer(*arguments):
        return EXERCISES[name].reference(*arguments)

    started = time.perf_counter()
    assert check(name, answer) is answer
    assert time.perf_counter() - started < 1
    assert capsys.readouterr().out == f"{name}: right.\n"


@pytest.mark.parametrize("name", EXERCISES)
def test_unsolved_goes_on_with_the_reference(name, capsys):
    def raises(*arguments):
        raise NotImplementedError

    for stub in (lambda *arguments: ..., raises):
        assert check(name, stub) is EXERCISES[name].reference
        assert "not solved yet, going on with the reference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "wrong"), [(name, wrong) for name, e in EXERCISES.items() for wrong in e.mistakes]
)
def test_each_mistake_is_named(name, wrong, capsys):
    assert check(name, wrong) is EXERCISES[name].reference
    assert EXERCISES[name].mistakes[wrong][1:] in capsys.readouterr().out


def test_other_wrong_answers_say_what_differs(capsys):
    reference = EXERCISES["mix"].reference
    for answer, said in (
        (lambda a, b, t: None, "return missing"),
        (lambda a, b, t: a[0], "shape"),
        (lambda a, b, t: "a", "shape str"),
        (lambda a, b, t: a * 3, "expected"),
        (lambda a, b, t: a * float("nan"), "gives nan, expected"),
        (lambda a, b, t: a.nothing, "AttributeError"),
        (lambda a, b: a, "TypeError"),
    ):
        assert check("mix", answer) is reference
        assert said in capsys.readouterr().out


def test_an_answer_may_be_text(capsys):
    reference = EXERCISES["kohya_key"].reference
    for answer, said in (
        (lambda key: "lora_unet_x", "gives 'lora_unet_x', expected 'lora_unet_"),
        (lambda key: 1.0, "expected str"),
        (lambda key: None, "return missing"),
    ):
        assert check("kohya_key", answer) is reference
        assert said in capsys.readouterr().out


def test_what_is_said_is_of_an_input_that_differs(capsys):
    reference = EXERCISES["convert_alpha"].reference

    def answer(*arguments):
        return -1.0 if arguments[2:] == ("kohya", "peft") else reference(*arguments)

    assert check("convert_alpha", answer) is reference
    assert "gives -1, expected" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["add_noise", "estimate_x0", "ddim_step"])
def test_one_timestep_for_all_latents_is_tried_too(name, capsys):
    reference = EXERCISES[name].reference

    def answer(scheduler, latents, noise, *timesteps):
        for timestep in timesteps:
            _ = scheduler.alphas_cumprod[timestep][:, None, None, None]  # a batch of them only
        return reference(scheduler, latents, noise, *timesteps)

    assert check(name, answer) is reference
    assert "IndexError" in capsys.readouterr().out


def test_an_answer_that_writes_on_its_input_is_refused(capsys):
    def answer(a, b, t):
        return a.mul_(1 - t).add_(b, alpha=t)

    assert check("mix", answer) is EXERCISES["mix"].reference
    assert "handed in have changed" in capsys.readouterr().out


def test_a_float_passes_where_a_tensor_of_one_number_is_meant(capsys):
    def answer(latents: torch.Tensor) -> float:
        return 1 / float(latents.std())

    assert check("scaling_factor", answer) is answer
