"""The exercises: right, unsolved, wrong and broken answers, and every listed mistake."""

import re
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from stylenb import StylenbError
from stylenb.course import lesson_01, lesson_02, lesson_03, lesson_06

SOURCES = sorted((Path(__file__).parents[1] / "notebooks" / "src").glob("*_*.py"))
LESSONS = {p: import_module(f"stylenb.course.lesson_{p.name.split('_')[0]}") for p in SOURCES}
EXERCISES = [pytest.param(one, n, id=n) for one in LESSONS.values() for n in one.EXERCISES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_lesson_finds_its_exercises_in_the_file_named_after_it(source):
    asked = re.findall(r'^\w+ = \w+\.check\("(\w+)", \w+\)$', source.read_text("utf-8"), re.M)
    assert sorted(asked) == sorted(LESSONS[source].EXERCISES)


@pytest.mark.parametrize(("lesson", "name"), EXERCISES)
def test_reference_is_right_and_quick(lesson, name, capsys):
    def answer(*arguments):
        return lesson.EXERCISES[name].reference(*arguments)

    lesson.check(name, answer)  # imports what the reference needs
    capsys.readouterr()
    started = time.perf_counter()
    assert lesson.check(name, answer) is answer
    assert time.perf_counter() - started < 1
    assert capsys.readouterr().out == f"{name}: right.\n"


@pytest.mark.parametrize(("lesson", "name"), EXERCISES)
def test_unsolved_goes_on_with_the_reference(lesson, name, capsys):
    def raises(*arguments):
        raise NotImplementedError

    for stub in (lambda *arguments: ..., raises):
        assert lesson.check(name, stub) is lesson.EXERCISES[name].reference
        assert capsys.readouterr().out == f"{name}: not solved yet, going on with the reference.\n"


@pytest.mark.parametrize(("lesson", "name"), EXERCISES)
def test_each_mistake_is_named(lesson, name, capsys):
    exercise = lesson.EXERCISES[name]
    assert len(exercise.rows) > 3
    for advice, wrong in exercise.rows:
        assert lesson.check(name, wrong) is exercise.reference
        assert advice[1:] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lesson", "name", "answer", "said"),
    [
        (lesson_01, "mix", lambda a, b, t: None, "return missing"),
        (lesson_01, "mix", lambda a, b, t: a[0], "shape"),
        (lesson_01, "mix", lambda a, b, t: "a", "shape str"),
        (lesson_01, "mix", lambda a, b, t: a * 3, "expected"),
        (lesson_01, "mix", lambda a, b, t: a * float("nan"), "gives nan, expected"),
        (lesson_01, "mix", lambda a, b, t: a.nothing, "AttributeError"),
        (lesson_01, "mix", lambda a, b: a, "TypeError"),
        (
            lesson_01,
            "mix",
            lambda a, b, t: a.mul_(1 - t).add_(b, alpha=t),
            "handed in have changed",
        ),
        (lesson_06, "kohya_key", lambda key: "lora_unet_x", "gives 'lora_unet_x', expected 'lora_"),
        (lesson_06, "kohya_key", lambda key: 1.0, "expected str"),
        (lesson_06, "kohya_key", lambda key: None, "return missing"),
    ],
)
def test_other_wrong_answers_say_what_differs(lesson, name, answer, said, capsys):
    assert lesson.check(name, answer) is lesson.EXERCISES[name].reference
    assert said in capsys.readouterr().out


def test_what_is_said_is_of_an_input_that_differs(capsys):
    reference = lesson_03.EXERCISES["convert_alpha"].reference

    def answer(*arguments):
        return -1.0 if arguments[2:] == ("kohya", "peft") else reference(*arguments)

    assert lesson_03.check("convert_alpha", answer) is reference
    assert "gives -1, expected" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["add_noise", "estimate_x0", "ddim_step"])
def test_one_timestep_for_all_latents_is_tried_too(name, capsys):
    reference = lesson_02.EXERCISES[name].reference

    def answer(scheduler, latents, noise, *timesteps):
        for timestep in timesteps:
            _ = scheduler.alphas_cumprod[timestep][:, None, None, None]  # a batch of them only
        return reference(scheduler, latents, noise, *timesteps)

    assert lesson_02.check(name, answer) is reference
    assert "IndexError" in capsys.readouterr().out


def test_a_float_passes_where_a_tensor_of_one_number_is_meant():
    def answer(latents: torch.Tensor) -> float:
        return 1 / float(latents.std())

    assert lesson_01.check("scaling_factor", answer) is answer


def test_an_answer_that_empties_a_list_of_its_own_trial_is_judged_by_its_result():
    def answer(shapes, rank):
        return sum(rank * sum(shapes.pop()) for _ in range(len(shapes)))

    assert lesson_03.check("lora_parameters", answer) is answer


def test_an_unknown_exercise_is_refused_with_the_choices():
    with pytest.raises(StylenbError, match="no exercise 'mix' here: choose lora_forward, convert_"):
        lesson_03.check("mix", lambda a, b, t: a)
