"""What is proposed fits, is what one would do first, and is said once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trainer.config import override
from trainer.errors import ConfigError
from trainer.fitting import Case, changes_that_fit, forecast, out_of_memory
from trainer.hardware import CARDS, GIB, Hardware
from trainer.recipes import get_recipe
from trainer.shape import LLAMA_7B, LLAMA_13B


def case(size: str, method: Any, card: str, count: int, **settings: Any) -> Case:
    given = [(key.replace("__", "."), str(value)) for key, value in settings.items()]
    made, _ = override(get_recipe(size, method).config, given)
    return Case(made, CARDS[card].of(count), {"7": LLAMA_7B, "13": LLAMA_13B}[size], count)


def applied(to: Case, options: str) -> Case:
    """The run that the proposed command line means."""
    words = options.split()
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "--set":
            to = replace(to, config=override(to.config, [tuple(value.split("=", 1))])[0])  # type: ignore[list-item]
        else:
            name, _, count = value.partition(":")
            to = replace(to, hardware=CARDS[name].of(int(count)), processes=int(count))
    return to


TOO_LARGE = [
    case("13", "full", "RTX4090", 8),
    case("13", "full", "A100-80GB", 2),
    case("13", "lora", "A10G", 1, lora__load_8bit=False),
    case("7", "full", "H100", 1),
    case("7", "lora", "T4", 1, train__per_device_train_batch_size=14),
    case("7", "full", "A100", 4, train__per_device_train_batch_size=32),
    case("13", "full", "A100", 4, parallel__strategy="deepspeed", parallel__zero_stage=2),
]


@pytest.mark.parametrize("run", TOO_LARGE)
@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_three_changes_are_proposed_and_each_fits(run: Case, scale: float) -> None:
    assert not run.estimate().fits(run.hardware)
    changes = changes_that_fit(run, scale)
    assert len(changes) == 3
    for change in changes:
        changed = applied(run, change.options)
        assert int(changed.estimate().bytes * scale) == change.bytes
        assert change.bytes < 0.98 * changed.hardware.memory_bytes


def test_fewer_rows_come_first_where_they_are_enough_because_they_change_no_number() -> None:
    run = case("7", "full", "A100", 4, train__per_device_train_batch_size=32)
    first = changes_that_fit(run)[0]
    assert first.options.startswith("--set train.per_device_train_batch_size=")
    rows = int(first.options.rpartition("=")[2])
    one_more = applied(run, f"--set train.per_device_train_batch_size={rows + 1}")
    assert one_more.estimate().bytes > 0.97 * run.hardware.memory_bytes


def test_checkpointing_comes_before_everything_where_it_is_off() -> None:
    run = case("7", "full", "A100-80GB", 4, train__gradient_checkpointing="false", data__max_length=4096)
    assert changes_that_fit(run)[0].options == "--set train.gradient_checkpointing=true"


def test_a_long_context_on_a_small_card_is_cut_to_the_longest_that_fits() -> None:
    run = case("7", "qlora", "T4", 1, data__max_length=32768)
    options = [change.options for change in changes_that_fit(run)]
    assert options == [
        "--set data.max_length=8192 --set train.per_device_train_batch_size=1",
        "--gpus A100:1",
    ]


def test_a_combination_that_no_library_can_do_is_not_proposed() -> None:
    for run in TOO_LARGE:
        if run.config.parallel.strategy == "fsdp":
            assert all("parallel.offload=optimizer" not in str(change) for change in changes_that_fit(run))


def test_nothing_is_proposed_where_nothing_helps() -> None:
    shed = Hardware("SHED", "cuda", 1, GIB, (8, 0))
    hopeless = replace(case("13", "qlora", "T4", 1), hardware=shed)
    assert changes_that_fit(replace(hopeless, shape=replace(LLAMA_13B, layers=4000))) == []


def test_rows_of_the_corpus_count_where_they_are_known() -> None:
    run = case("7", "full", "A100", 4, train__per_device_train_batch_size=32)
    short = replace(run, fullest=lambda config: (40 * config.train.per_device_train_batch_size, 64))
    assert short.estimate().bytes < run.estimate().bytes
    assert short.estimate().fits(run.hardware)


def test_running_out_of_memory_is_one_message_with_the_peak_the_terms_and_what_would_fit() -> None:
    run = case("13", "full", "A100-80GB", 2)
    error = out_of_memory(run, "before the first step", 76 * GIB, "606.00 MiB")
    assert error.exit_code == 3
    assert error.message.startswith(
        "out of memory before the first step: 76.0 GiB of 79.2 GiB of A100-80GB were in use when 606.00 MiB more"
    )
    for term in run.estimate().terms:
        assert f"{term.name}: " in error.message
    assert error.hint and error.hint.startswith("each of these three would fit")
    assert error.hint.count("\n  --") == 3


def test_a_forecast_says_whether_the_run_is_expected_to_fit() -> None:
    assert forecast(lambda: case("7", "full", "A100-80GB", 4)).endswith(
        "expected, in the backward pass of a layer"
    )
    tight = forecast(lambda: case("13", "full", "RTX4090", 8))
    assert tight.endswith("it may run out, and --set parallel.offload=all would fit")

    def another_family() -> Case:
        raise ConfigError("no such sizes")

    assert forecast(another_family) == "memory: no such sizes"


def test_an_estimate_that_was_too_low_is_not_trusted_for_the_proposals() -> None:
    run = case("7", "full", "A100", 4)
    used = 39 * GIB
    assert run.estimate().bytes < used
    error = out_of_memory(run, "while training", used, "")
    scale = used / run.estimate().bytes
    assert error.hint
    assert [f"  {change}" for change in changes_that_fit(run, scale)] == error.hint.splitlines()[1:]
