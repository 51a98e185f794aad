"""The official openai client against the API, every parameter, whole and streamed, over real sockets."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

openai = pytest.importorskip("openai")

from tests.serving.stack import Stack  # noqa: E402


@pytest.fixture(scope="module")
def client(service: Stack) -> Any:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def user(script: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": script}]


def chat(client: Any, script: str, **more: Any) -> Any:
    return client.chat.completions.create(model="scripted", messages=user(script), **more)


def streamed(client: Any, script: str, **more: Any) -> list[Any]:
    return list(chat(client, script, stream=True, **more))


def test_a_whole_answer_has_text_reason_and_exact_usage(client: Any) -> None:
    answer = chat(client, "count to 5")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "1 2 3 4 5",
        "stop",
    )
    prompt = len("system: be brief\nuser: count to 5")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, 5, prompt + 5)
    assert (
        answer.id.startswith("chatcmpl-")
        and answer.object == "chat.completion"
        and answer.model == "scripted"
    )


def test_a_stream_says_the_same_token_by_token(client: Any) -> None:
    chunks = streamed(client, "count to 5", stream_options={"include_usage": True})
    text = [c.choices[0].delta.content for c in chunks if c.choices]
    assert text == ["1", " 2", " 3", " 4", " 5", ""]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None] * 5 + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 5
    assert {c.usage for c in chunks[:-1]} == {None}
    assert len({c.id for c in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"


def test_white_space_that_a_template_has_the_model_write_first_is_no_part_of_an_answer(client: Any) -> None:
    assert chat(client, "say   a b ").choices[0].message.content == "a b "
    assert "".join(c.choices[0].delta.content for c in streamed(client, "say   a b ")) == "a b "


def test_without_being_asked_a_stream_has_no_usage(client: Any) -> None:
    assert all(chunk.usage is None and chunk.choices for chunk in streamed(client, "count to 2"))


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_the_limit_of_tokens_ends_an_answer_with_length(client: Any, limit: str) -> None:
    answer = chat(client, "count to 9", **{limit: 3})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("1 2 3", "length")
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("stop", ["3", ["nothing", " 3"]])
def test_stop_strings_end_an_answer_and_are_not_part_of_it(client: Any, stop: Any) -> None:
    answer = chat(client, "count to 9", stop=stop)
    assert (answer.choices[0].message.content.strip(), answer.choices[0].finish_reason) == ("1 2", "stop")


def test_several_choices_have_seeds_of_their_own_and_count_together(client: Any) -> None:
    answer = chat(client, "seed", n=3, seed=40)
    assert [c.message.content for c in answer.choices] == ["40", "41", "42"]
    assert [c.index for c in answer.choices] == [0, 1, 2] and answer.usage.completion_tokens == 3
    chunks = streamed(client, "count to 3", n=2, stream_options={"include_usage": True})
    by_choice = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            by_choice[choice.index] += choice.delta.content
    assert by_choice == {0: "1 2 3", 1: "1 2 3"} and chunks[-1].usage.completion_tokens == 6


def test_every_parameter_of_sampling_reaches_the_engine(client: Any) -> None:
    said = (
        chat(
            client,
            "sampling",
            temperature=0.25,
            top_p=0.5,
            presence_penalty=-1,
            frequency_penalty=1.5,
            logit_bias={"17": -100},
            seed=7,
            max_tokens=9,
            stop=["\t"],
            user="somebody",
            extra_body={
                "top_k": 5,
                "min_p": 0.1,
                "repetition_penalty": 1.1,
                "ignore_eos": True,
                "stop_token_ids": [3],
            },
        )
        .choices[0]
        .message.content
    )
    for part in (
        "max_tokens=9", "temperature=0.25", "top_p=0.5", "top_k=5", "min_p=0.1", "presence_penalty=-1.0",
        "frequency_penalty=1.5", "repetition_penalty=1.1", "seed=7", "stop=('\\t',)", "stop_token_ids=(3,)",
        "logit_bias={17: -100.0}", "ignore_eos=True", "logprobs=None", "json_schema=None",
    ):  # fmt: skip
        assert part in said


def test_null_means_the_default(client: Any) -> None:
    nothing = dict.fromkeys(
        ("temperature", "top_p", "n", "stop", "max_tokens", "seed", "logit_bias", "user", "tools", "logprobs")
    )
    said = chat(client, "sampling", extra_body=nothing).choices[0].message.content
    assert "temperature=1.0" in said and "max_tokens=None" in said


def test_logprobs_come_with_their_bytes_and_alternatives(client: Any) -> None:
    answer = chat(client, "say ab", logprobs=True, top_logprobs=2)
    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("a", [97], -0.5)
    assert [top.token for top in second.top_logprobs] == ["b0", "b1"]
    chunks = streamed(client, "say ab", logprobs=True)
    assert [t.token for c in chunks for x in c.choices if x.logprobs for t in x.logprobs.content] == [
        "a",
        "b",
    ]


def test_a_schema_reaches_the_engine(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    def seen(form: dict[str, Any]) -> str:
        return str(chat(client, "sampling", response_format=form).choices[0].message.content)

    assert "'integer'" in seen(form)
    assert "json_schema={}" in seen({"type": "json_object"})
    assert "json_schema=None" in seen({"type": "text"})


def test_tools_go_through_the_template(client: Any) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    with_tool = chat(client, "count to 1", tools=[tool], tool_choice="auto").usage.prompt_tokens
    without = chat(client, "count to 1", tools=[tool], tool_choice="none").usage.prompt_tokens
    assert with_tool > without == chat(client, "count to 1").usage.prompt_tokens


def test_a_dialogue_with_tools_and_parts_is_taken(client: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    answer = client.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "developer", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "look"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "seen"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "count "}, {"type": "text", "text": "to 2"}],
            },
        ],
    )
    assert answer.choices[0].message.content == "1 2"


def test_completions_take_text_many_texts_and_tokens(client: Any) -> None:
    one = client.completions.create(model="scripted", prompt="count to 3", max_tokens=2, logprobs=1)
    assert (one.choices[0].text, one.choices[0].finish_reason) == ("1 2", "length")
    assert one.choices[0].logprobs.tokens == ["1", " 2"] and one.choices[0].logprobs.text_offset == [0, 1]
    many = client.completions.create(model="scripted", prompt=["count to 1", "count to 2"], n=2, best_of=2)
    assert [choice.text for choice in many.choices] == ["1", "1", "1 2", "1 2"]
    tokens = client.completions.create(model="scripted", prompt=list(b"count to 3"))
    assert tokens.choices[0].text == "1 2 3" and tokens.usage.prompt_tokens == 10
    echoed = client.completions.create(model="scripted", prompt="count to 2", echo=True)
    assert echoed.choices[0].text == "count to 21 2"
    parts = client.completions.create(model="scripted", prompt="count to 2", echo=True, stream=True)
    assert "".join(part.choices[0].text for part in parts) == "count to 21 2"


def test_embeddings_are_unit_vectors_in_order(client: Any) -> None:
    answer = client.embeddings.create(model="scripted", input=["a", "bc"])  # the client asks for base64
    plain = client.embeddings.create(model="scripted", input=["a", "bc"], encoding_format="float")
    for packed, whole in zip(answer.data, plain.data, strict=True):
        assert packed.embedding == pytest.approx(whole.embedding, abs=1e-6)
        assert sum(x * x for x in whole.embedding) == pytest.approx(1)
    assert answer.usage.prompt_tokens == 3


def test_models_are_listed_and_found(client: Any) -> None:
    (model,) = client.models.list().data
    assert model.id == "scripted" and client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


@pytest.mark.parametrize(
    ("asked", "kind", "param", "said"),
    [
        ({"model": "another"}, openai.NotFoundError, "model", "there is scripted"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "less than or equal to 2"),
        ({"temprature": 1}, openai.BadRequestError, "temprature", "did you mean temperature"),
        ({"functions": []}, openai.BadRequestError, "functions", "not honoured"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs", "needs logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, openai.BadRequestError, "max_tokens", "not both"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "messages", "context is 8192 tokens"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias", "no token id"),
        ({"stop": [""]}, openai.BadRequestError, "stop.0", "at least 1"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice", "'none' or 'auto'"),
        ({"messages": []}, openai.BadRequestError, "messages", "at least 1"),
        ({"n": "1"}, openai.BadRequestError, "n", "valid integer"),
        ({"stream_options": {"x": 1}}, openai.BadRequestError, "stream_options.x", "not honoured"),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused_by_its_name(
    client: Any, asked: dict[str, Any], kind: type[Exception], param: str, said: str
) -> None:
    # Who asks for a model in the API's first seconds is told to ask again: its worker may not be in the table yet.
    patient = client.with_options(max_retries=8)
    with pytest.raises(kind) as refused:
        patient.chat.completions.create(
            **{"model": "scripted", "messages": user("count to 1"), "extra_body": asked}
        )
    assert refused.value.param == param and said in refused.value.message  # type: ignore[attr-defined]


def test_refusals_of_the_engine_have_their_own_codes(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="does not do that"):
        chat(client, "refuse")
    with pytest.raises(openai.RateLimitError, match="no place left") as busy:
        chat(client, "busy")
    assert busy.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.InternalServerError, match="the engine failed: RuntimeError"):
        streamed(client, "fail")


def test_a_stream_that_breaks_says_so_and_has_no_done(client: Any) -> None:
    got = []
    with pytest.raises(openai.APIError, match="the engine failed"):
        for chunk in chat(client, "fail after 3", stream=True):
            got.append(chunk.choices[0].delta.content)
    assert got == ["1", " 2", " 3"]


def test_curl_streams_line_by_line(service: Stack) -> None:
    body = '{"model":"scripted","stream":true,"messages":[{"role":"user","content":"count to 2"}]}'
    done = subprocess.run(
        ["curl", "-sN", f"{service.url}/v1/chat/completions", "-d", body],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    lines = done.stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and all(line.startswith("data: ") for line in lines[:-1])


def test_no_request_leaves_anything_open(service: Stack) -> None:
    from tests.serving.stack import wait_until

    wait_until(service.idle)
