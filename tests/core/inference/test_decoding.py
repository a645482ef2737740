"""The generation loop: against the full forward, with stop strings, several samples, and limits."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.inference.decoding import Completion, Limits, held_back, stop_at
from codecria.core.inference.engine import complete
from codecria.core.inference.sampling import Sampling
from codecria.core.inference.torch_runner import TorchRunner
from codecria.core.model.attention import PackedAttention
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UsageError, UserError
from tests.core.inference.letters import letter_model

NO_END: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model() -> Transformer:
    return letter_model()


class Letters:
    """A stream that writes token n as the n-th letter, and holds every second one back."""

    def __init__(self) -> None:
        self.waiting = ""

    def push(self, token: int) -> str:
        self.waiting += chr(ord("a") + token)
        return self.finish() if len(self.waiting) == 2 else ""

    def finish(self) -> str:
        text, self.waiting = self.waiting, ""
        return text


def letters(ids: tuple[int, ...]) -> str:
    return "".join(chr(ord("a") + token) for token in ids)


def run(model: Transformer, prompt: list[int], **options: object) -> list[Completion]:
    """All completions, after checking that the streamed text is theirs."""
    limits = {"max_tokens": 12} | {
        key: options.pop(key)
        for key in ("max_tokens", "stops", "samples", "context")
        if key in options
    }
    settings = {"sampling": Sampling(), "ends": NO_END, "limits": Limits(**limits)} | options  # type: ignore[arg-type]
    streamed: dict[int, str] = {}
    done: dict[int, Completion] = {}
    for number, event in complete(TorchRunner(model), prompt, new_stream=Letters, **settings):  # type: ignore[arg-type]
        if isinstance(event, str):
            assert number not in done, "text after the end"
            streamed[number] = streamed.get(number, "") + event
        else:
            done[number] = event
    for number, completion in done.items():
        assert streamed.get(number, "") == completion.text
    return [done[number] for number in sorted(done)]


def greedy_by_full_forward(model: Transformer, prompt: list[int], n: int) -> tuple[int, ...]:
    """The reference: the whole sequence through the model for each token."""
    ids = list(prompt)
    for _ in range(n):
        tensor = torch.tensor([ids])
        with torch.no_grad():
            hidden = model(tensor, torch.arange(len(ids)).unsqueeze(0), PackedAttention(None))
            ids.append(int(model.logits(hidden[:, -1]).argmax()))
    return tuple(ids[len(prompt) :])


def test_greedy_decoding_equals_the_full_forward(model: Transformer) -> None:
    prompt = [1, 7, 3, 20]
    [completion] = run(model, prompt)
    assert completion.ids == greedy_by_full_forward(model, prompt, 12)
    assert completion.text == letters(completion.ids)
    assert completion.finish_reason == "length"
    assert completion.prompt_tokens == 4


def test_an_end_token_ends_and_is_left_out(model: Transformer) -> None:
    expected = greedy_by_full_forward(model, [1, 2], 12)
    end = expected[5]
    [completion] = run(model, [1, 2], ends=frozenset({end}))
    assert completion.ids == expected[: expected.index(end)]
    assert completion.finish_reason == "stop"


def test_a_stop_string_ends_and_is_left_out_though_it_spans_tokens(model: Transformer) -> None:
    expected = letters(greedy_by_full_forward(model, [1, 2], 12))
    stop = expected[4:7]
    [completion] = run(model, [1, 2], stops=("never there", stop))
    assert completion.text == expected[: expected.index(stop)]
    assert completion.finish_reason == "stop"


def test_samples_do_not_depend_on_what_is_sampled_beside_them(model: Transformer) -> None:
    sampling = Sampling(temperature=1.0, seed=4)
    three = run(model, [1, 5], sampling=sampling, samples=3, ends=frozenset({2, 9, 13}))
    [one] = run(model, [1, 5], sampling=sampling, samples=1, ends=frozenset({2, 9, 13}))
    assert len(three) == 3
    assert three[0].ids == one.ids
    assert len({completion.ids for completion in three}) > 1
    again = run(model, [1, 5], sampling=sampling, samples=3, ends=frozenset({2, 9, 13}))
    assert [c.ids for c in again] == [c.ids for c in three]


def test_rescoring_the_generated_tokens_finds_each_of_them_best(model: Transformer) -> None:
    prompt = [1, 11, 4]
    [completion] = run(model, prompt)
    ids = torch.tensor([prompt + list(completion.ids)])
    with torch.no_grad():
        hidden = model(ids, torch.arange(ids.shape[1]).unsqueeze(0), PackedAttention(None))
        best = model.logits(hidden)[0, len(prompt) - 1 : -1].argmax(-1)
    assert tuple(best.tolist()) == completion.ids


def test_the_context_bounds_prompt_and_completion_together(model: Transformer) -> None:
    [completion] = run(model, [1] * 60, max_tokens=100)
    assert len(completion.ids) == 4
    assert completion.finish_reason == "length"
    [longer] = run(model, [1] * 60, max_tokens=100, context=70)
    assert len(longer.ids) == 10
    with pytest.raises(UserError, match="the prompt has 64 tokens, the context 64"):
        run(model, [1] * 64)


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ([], {}, UserError),
        ([26], {}, UserError),
        ([-1], {}, UserError),
        ([1], {"max_tokens": 0}, UsageError),
        ([1], {"samples": 0}, UsageError),
        ([1], {"stops": ("",)}, UsageError),
    ],
)
def test_what_cannot_be_generated_is_refused(
    model: Transformer, prompt: list[int], options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        run(model, prompt, **options)


texts = st.text("ab\n", max_size=12)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@given(text=texts, stops=stop_lists, cuts=st.lists(st.integers(0, 12), max_size=6))
def test_streaming_never_shows_a_character_that_a_stop_string_takes_back(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    # Kills: searching only the newest piece, holding back one character too few.
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    whole = stop_at(text, stops, 0)
    final = text if whole is None else text[:whole]
    shown, seen = "", ""
    for a, b in itertools.pairwise(borders):
        seen += text[a:b]
        cut = stop_at(seen, stops, a)
        if cut is not None:
            shown = seen[:cut]
            break
        certain = seen[: len(seen) - held_back(seen, stops)]
        assert certain.startswith(shown)
        shown = certain
        assert final.startswith(shown)
    else:
        shown = seen
    # Cut text may end at a stop string that only later text would have put further left.
    assert shown == final or (whole is not None and len(shown) >= len(final))
