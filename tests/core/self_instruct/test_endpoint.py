"""An OpenAI-compatible endpoint that answers, fails, lies and drops connections, on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from codecria.core import endpoint as endpoints
from codecria.core.endpoint import Access, key_from
from codecria.core.self_instruct.endpoint import Endpoint
from codecria.core.self_instruct.models import Ask, Reply
from codecria.core.self_instruct.settings import Settings
from codecria.data.errors import UsageError, UserError
from codecria.data.formats.chat import Message

KEY = "sk-very-secret"
QUESTION = "Question: Write a function add_3 that adds 3 to a number.\nTest:\nassert add_3(1) == 4"


def ask(samples: int = 1, key: str = "k", **changes: Any) -> Ask:
    options: dict[str, Any] = {
        "stage": "solutions",
        "key": key,
        "dialog": (Message(role="user", content=QUESTION),),
        "samples": samples,
        "settings": Settings(),
        "model": {"kind": "openai", "model": "m"},
        "form": "chat",
    }
    return Ask(**options | changes)


@pytest.fixture
def connect(endpoint: Any) -> Callable[..., Endpoint]:
    def make(**options: Any) -> Endpoint:
        form = options.pop("form", "chat")
        access = Access(url=endpoint.url, **{"key": KEY, "timeout_s": 60.0} | options)
        slept: list[float] = []
        made = Endpoint(access, "m", form=form, note=notes.append, sleep=slept.append)
        made.slept = slept  # type: ignore[attr-defined]
        return made

    notes: list[str] = []
    make.notes = notes  # type: ignore[attr-defined]
    return make


def answers(model: Endpoint, *asks: Ask) -> dict[str, Reply]:
    return {reply.id: reply for batch in model.answer(asks, ()) for reply in batch}


def test_every_sample_is_asked_for_with_a_seed_of_its_own(
    endpoint: Any, connect: Callable[..., Endpoint]
) -> None:
    asked = ask(samples=5)
    found = answers(connect(concurrency=3), asked)
    assert set(found) == set(asked.ids())
    assert all("[PYTHON]" in r.text or "rather not" in r.text for r in found.values())
    seeds = [body["seed"] for _, _, body in endpoint.seen]
    assert len(set(seeds)) == 5
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["stop"] == ["[/PYTHON]"]
    assert body["model"] == "m"
    assert (body["temperature"], body["top_p"]) == (0.8, 0.95)


def test_what_is_known_is_not_asked_for(endpoint: Any, connect: Callable[..., Endpoint]) -> None:
    asked = ask(samples=4)
    known = asked.ids()[:3]
    found = [reply.id for batch in connect().answer([asked], known) for reply in batch]
    assert found == asked.ids()[3:]
    assert len(endpoint.seen) == 1


def test_base_models_are_asked_with_plain_text(
    endpoint: Any, connect: Callable[..., Endpoint]
) -> None:
    asked = ask(form="few-shot")
    found = answers(connect(form="few-shot"), asked)
    path, _, body = endpoint.seen[0]
    assert path == "/v1/completions"
    assert body["prompt"] == f"[INST] {QUESTION} [/INST]"
    assert "[INST]" in body["stop"]
    assert found[asked.ids()[0]].finish_reason == "stop"


@pytest.mark.parametrize("fault", ["drop", "500", "garbage", "429", "torn", "empty"])
def test_what_passes_is_tried_again(
    endpoint: Any, connect: Callable[..., Endpoint], fault: str
) -> None:
    endpoint.faults = [fault, fault]
    model = connect(concurrency=1)
    assert answers(model, ask())
    assert len(endpoint.seen) == 3
    pauses = model.slept  # type: ignore[attr-defined]
    assert pauses == ([0.0, 0.0] if fault == "429" else [0.5, 1.0])


@pytest.mark.parametrize("fault", ["drip", "slow headers"])
def test_the_time_of_a_request_bounds_the_whole_of_it(
    endpoint: Any, connect: Callable[..., Endpoint], fault: str
) -> None:
    endpoint.faults = [fault]
    started = time.perf_counter()
    assert answers(connect(timeout_s=0.4, retries=0), ask()) == {}
    assert time.perf_counter() - started < 30.0  # it drips without end
    assert connect.notes == [  # type: ignore[attr-defined]
        "no answer after 1 tries: no whole response within 0.4 s"
    ]
    assert answers(connect(), ask()), "the next is answered"


def test_what_fails_for_good_is_left_open_and_the_others_are_answered(
    endpoint: Any, connect: Callable[..., Endpoint]
) -> None:
    endpoint.faults = ["500"] * 3
    model = connect(concurrency=1, retries=2)
    found = answers(model, ask(key="a"), ask(key="b"))
    assert list(found) == ask(key="b").ids()
    assert model.failed == 1
    assert "no memory left" in connect.notes[0]  # type: ignore[attr-defined]


def test_an_endpoint_that_fails_always_ends_the_run(
    endpoint: Any, connect: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "GIVE_UP_AFTER", 3)
    endpoint.status = (503, {}, b"")
    with pytest.raises(UserError, match="3 requests in a row: HTTP 503"):
        answers(connect(retries=0), *(ask(key=str(n)) for n in range(9)))


def test_nobody_at_the_address_is_told(connect: Callable[..., Endpoint], endpoint: Any) -> None:
    model = Endpoint(
        Access(url="http://127.0.0.1:9/v1", retries=0, timeout_s=2),
        "m",
        note=connect.notes.append,  # type: ignore[attr-defined]
    )
    assert answers(model, ask()) == {}
    assert "refused" in connect.notes[0]  # type: ignore[attr-defined]
    assert endpoint.seen == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_endpoint_ends_the_run_at_once(
    endpoint: Any, connect: Callable[..., Endpoint], status: int
) -> None:
    endpoint.status = (status, {}, f"no such key: {KEY}".encode())
    with pytest.raises(UserError, match="does not take requests") as caught:
        answers(connect(), ask())
    assert KEY not in caught.value.message
    assert "[key]" in caught.value.message


def test_a_refused_request_is_an_answer_and_is_not_tried_again(
    endpoint: Any, connect: Callable[..., Endpoint]
) -> None:
    endpoint.status = (400, {}, b'{"error": "content filter"}')
    (reply,) = answers(connect(), ask()).values()
    assert reply.finish_reason == "refused"
    assert "content filter" in reply.detail
    assert len(endpoint.seen) == 1


def test_the_key_does_not_follow_a_redirect(
    endpoint: Any, connect: Callable[..., Endpoint]
) -> None:
    endpoint.status = (302, {"Location": endpoint.url.replace("/v1", "/elsewhere")}, b"")
    with pytest.raises(UserError, match="HTTP 302"):
        answers(connect(), ask())
    assert [path for path, _, _ in endpoint.seen] == ["/v1/chat/completions"]


def test_an_answer_may_be_nothing_or_cut(endpoint: Any, connect: Callable[..., Endpoint]) -> None:
    endpoint.status = (
        200,
        {},
        b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}], "usage": 7}',
    )
    (reply,) = answers(connect(), ask()).values()
    assert (reply.text, reply.finish_reason, reply.tokens) == ("", "length", None)


def test_a_response_without_end_is_not_read_to_its_end(
    endpoint: Any, connect: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MOST_BYTES", 100)
    endpoint.status = (200, {}, b"x" * 1000)
    model = connect(retries=1)
    assert answers(model, ask()) == {}
    assert model.failed == 1


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://host/v1", "http://user:pass@host/v1", "http://host/v1?key=1", ""],
)
def test_an_address_is_checked(url: str) -> None:
    with pytest.raises(UsageError):
        Access(url=url)


def test_a_key_in_the_clear_is_known() -> None:
    assert Access(url="http://example.org/v1", key="k").in_the_clear
    assert not Access(url="https://example.org/v1", key="k").in_the_clear
    assert not Access(url="http://127.0.0.1:1/v1", key="k").in_the_clear
    assert not Access(url="http://example.org/v1").in_the_clear


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " k\n")
    assert key_from("MY_KEY") == "k"
    monkeypatch.delenv("MY_KEY")
    assert key_from("MY_KEY") == ""


def test_ids_depend_on_everything_an_answer_depends_on() -> None:
    one = ask()
    others = [
        ask(key="other"),
        ask(model={"kind": "openai", "model": "other"}),
        ask(form="few-shot"),
        ask(dialog=(Message(role="user", content="other"),)),
        ask(settings=Settings(seed=1)),
        ask(settings=Settings(top_p=0.5)),
        ask(settings=Settings(solutions_tokens=9)),
        ask(stage="tests"),
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == len(others) + 1
    assert one.digest() == ask(settings=Settings(questions=5)).digest(), "more questions, same ids"
