"""Prompts cut to a context: always whole in their form, never longer, never shorter than needed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.errors import UsageError, UserError
from codecria.data.formats import chat
from codecria.data.formats.chat import Message
from codecria.data.formats.infill import Infiller, Order
from codecria.data.formats.window import (
    Room,
    Truncate,
    fit_chat,
    fit_completion,
    fit_infill,
    head,
    split_tokens,
    tail,
)
from codecria.data.tokenizer.tokenizer import Tokenizer

lines = st.lists(
    st.sampled_from(["def f(x):\n", "    return x + 1\n", "\n", "é = '\u2581'\n", "x" * 50, "\r"]),
    max_size=60,
).map("".join)
orders = st.sampled_from([Order.PSM, Order.SPM])
rooms = st.builds(
    Room, context=st.integers(16, 200), max_tokens=st.sampled_from([1, 8, 40, 128, 10**9])
)


@pytest.fixture(scope="module")
def infiller(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Infiller:
    return Infiller(tokenizer.extend(tmp_path_factory.mktemp("extended") / "tokenizer.model"))


def parts(infiller: Infiller, ids: Sequence[int], order: Order) -> tuple[list[int], list[int]]:
    """The ids of prefix and suffix in a prompt, after checking that every sentinel is there."""
    special, bos = infiller.special, infiller.tokenizer.bos_id
    ids = list(ids)
    suffix, middle = ids.index(special.suffix), ids.index(special.middle)
    assert ids[:2] == [bos, special.prefix]
    for token in (bos, special.prefix, special.suffix, special.middle):
        assert ids.count(token) == 1
    if order == Order.PSM:
        assert middle == len(ids) - 1
        return ids[2:suffix], ids[suffix + 1 : middle]
    assert suffix == 2
    return ids[middle + 1 :], ids[suffix + 1 : middle]


@given(prefix=lines, suffix=lines, order=orders, room=rooms, share=st.floats(0, 1))
def test_a_window_is_a_prompt_of_the_text_around_the_gap_that_fits(
    infiller: Infiller, prefix: str, suffix: str, order: Order, room: Room, share: float
) -> None:
    # Kills: cutting ids, a prompt without a sentinel, one side's unused share lost.
    tokenizer = infiller.tokenizer
    fitted = fit_infill(infiller, prefix, suffix, order, room, "window", prefix_share=share)
    whole = infiller.prompt(prefix, suffix, order).tolist()
    assert len(fitted.ids) <= room.cut <= room.uncut
    before, behind = parts(infiller, fitted.ids, order)
    if len(whole) <= room.cut:
        assert (fitted.ids, fitted.left_out) == (whole, None)
        return
    assert fitted.left_out
    texts = [prefix[at:] for at in range(len(prefix) + 1)]
    [near] = [text for text in texts if tokenizer.encode(text) == before][:1]
    ends = [suffix[:at] for at in range(len(suffix) + 1)]
    assert any(tokenizer.encode(text, leading_space=False) == behind for text in ends)
    # What is left unused is less than moving both cuts to a line and one more character cost.
    unused = room.cut - len(fitted.ids)
    assert unused <= room.cut // 8 + 2 * 8
    assert near == prefix[len(prefix) - len(near) :]


@given(prefix=lines, suffix=lines, order=orders, room=rooms)
def test_left_keeps_the_suffix_whole_or_is_refused(
    infiller: Infiller, prefix: str, suffix: str, order: Order, room: Room
) -> None:
    whole = infiller.tokenizer.encode(suffix, leading_space=False)
    if len(whole) > room.cut - 4:
        with pytest.raises(UserError, match="after the gap does not fit") as refused:
            fit_infill(infiller, prefix, suffix, order, room, "left")
        assert "--truncate window" in str(refused.value.hint)
        return
    fitted = fit_infill(infiller, prefix, suffix, order, room, "left")
    assert parts(infiller, fitted.ids, order)[1] == whole
    assert len(fitted.ids) <= room.cut


def test_cuts_are_at_the_starts_of_lines_and_are_reported(infiller: Infiller) -> None:
    prefix = "".join(f"before_{n} = {n}\n" for n in range(1000))
    suffix = "".join(f"after_{n} = {n}\n" for n in range(1000))
    room = Room(context=512, max_tokens=128)
    fitted = fit_infill(infiller, prefix, suffix, Order.PSM, room, "window")
    before, behind = parts(infiller, fitted.ids, Order.PSM)
    shown = infiller.tokenizer.decode(before)
    after = infiller.tokenizer.decode_continuation(behind)
    assert shown.startswith("before_")
    assert prefix.endswith("\n" + shown)
    assert after.endswith("\n")
    assert suffix.startswith(after)
    assert 2.2 < len(before) / len(behind) < 3.8  # three to one
    dropped = (1000 - shown.count("\n"), 1000 - after.count("\n"))
    assert fitted.left_out == f"the first {dropped[0]} lines and the last {dropped[1]} lines"
    with pytest.raises(UserError, match="the context 512") as refused:
        fit_infill(infiller, prefix, suffix, Order.PSM, room, "off")
    assert "--truncate window" in str(refused.value.hint)


def test_a_file_of_one_long_line_is_cut_within_it(infiller: Infiller) -> None:
    room = Room(context=64, max_tokens=16)
    fitted = fit_infill(infiller, "a+" * 999, "b-" * 999, Order.SPM, room, "window")
    before, behind = parts(infiller, fitted.ids, Order.SPM)
    assert len(before) > len(behind) > 5
    assert fitted.left_out is not None
    assert fitted.left_out.count("characters") == 2
    assert "line" not in fitted.left_out


def test_a_prefix_share_that_is_none_is_refused(infiller: Infiller) -> None:
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="prefix share"):
            fit_infill(
                infiller,
                "",
                "",
                Order.PSM,
                Room(context=64, max_tokens=8),
                "window",
                prefix_share=share,
            )


@given(st.integers(0, 500), st.integers(0, 600), st.integers(0, 600), st.floats(0, 1))
def test_the_share_of_a_short_side_goes_to_the_other(
    tokens: int, before: int, behind: int, share: float
) -> None:
    prefix, suffix = split_tokens(tokens, (before, behind), share)
    assert 0 <= prefix <= before
    assert 0 <= suffix <= behind
    assert prefix + suffix == min(tokens, before + behind)
    if before >= tokens and behind >= tokens:
        assert abs(prefix - tokens * share) <= 0.5


@given(text=lines, tokens=st.integers(0, 60))
def test_tail_and_head_are_the_longest_that_fit_or_end_at_a_line(
    tokenizer: Tokenizer, text: str, tokens: int
) -> None:
    for cut, rest, encode in (
        (tail(text, tokens, tokenizer.encode), -1, tokenizer.encode),
        (head(text, tokens, tokenizer.encode), 1, tokenizer.encode),
    ):
        assert len(encode(cut)) <= tokens
        assert text.endswith(cut) if rest < 0 else text.startswith(cut)
        if len(cut) == len(text):
            continue
        more = text[len(text) - len(cut) - 1 :] if rest < 0 else text[: len(cut) + 1]
        place = len(text) - len(cut) if rest < 0 else len(cut)
        at_line = place == 0 or text[place - 1] == "\n"
        assert at_line or len(encode(more)) > tokens


@given(text=lines, room=rooms, truncate=st.sampled_from(["left", "window"]))
def test_a_cut_completion_has_bos_and_the_end_of_the_text(
    tokenizer: Tokenizer, text: str, room: Room, truncate: Truncate
) -> None:
    whole = tokenizer.encode(text, bos=True)
    fitted = fit_completion(tokenizer, text, room, truncate)
    assert fitted.ids[0] == tokenizer.bos_id
    assert len(fitted.ids) <= room.cut
    assert (fitted.ids == whole) == (len(whole) <= room.cut) == (fitted.left_out is None)
    ends = [tokenizer.encode(text[at:]) for at in range(len(text))]
    assert fitted.ids[1:] in [*ends, []]
    if len(whole) > room.uncut:
        with pytest.raises(UserError, match="the context") as refused:
            fit_completion(tokenizer, text, room, "off")
        assert "--truncate left" in str(refused.value.hint)
    else:
        assert fit_completion(tokenizer, text, room, "off").ids == whole


def test_room_leaves_the_completion_its_tokens_and_the_prompt_a_quarter() -> None:
    for context, most in itertools.product((2, 16, 512), (1, 100, 128, 400, 10**9)):
        room = Room(context=context, max_tokens=most)
        assert 1 <= room.cut <= context - 1
        assert room.cut + most <= context or room.cut == min(context - 1, max(16, context // 4))


# --- chat ---


def dialog(turns: int, system: str | None, words: int = 10) -> list[Message]:
    found = [Message(role="system", content=system)] if system is not None else []
    for n in range(turns):
        found.append(Message(role="user", content=f"question {n} " + "word " * words))
        found.append(Message(role="assistant", content=f"answer {n}"))
    return [*found, Message(role="user", content="the last question")]


@pytest.mark.parametrize("form", ["llama2", "turns"])
@pytest.mark.parametrize("system", [None, "be brief"])
@pytest.mark.parametrize("truncate", ["left", "window"])
def test_a_chat_loses_its_oldest_whole_turns_and_never_its_system_prompt(
    form: str, system: str | None, truncate: Truncate, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    # Kills: cutting ids, a system prompt that goes with its turn, a turn too many left out.
    spoken = with_step(tokenizer, tmp_path) if form == "turns" else tokenizer
    assert chat.form_of(spoken) == form
    turns = 12
    asked = dialog(turns, system)
    head = asked[:1] if system is not None else []
    tails = [
        chat.prompt_ids(spoken, [*head, *asked[len(head) + 2 * n :]]) for n in range(turns + 1)
    ]
    for context in range(len(tails[-1]) + 1, len(tails[0]) + 40, 23):
        room = Room(context=context, max_tokens=20)
        fitted = fit_chat(spoken, asked, room, truncate)
        expected = next((n for n in range(turns) if len(tails[n]) <= room.cut), turns)
        assert fitted.ids == tails[expected]
        assert (fitted.left_out is None) == (expected == 0)
        if len(tails[0]) > room.uncut:
            with pytest.raises(UserError, match="the prompt has"):
                fit_chat(spoken, asked, room, "off")


@pytest.mark.parametrize("truncate", ["off", "left", "window"])
def test_a_question_that_does_not_fit_is_refused(tokenizer: Tokenizer, truncate: Truncate) -> None:
    asked = [*dialog(3, "be brief")[:-1], Message(role="user", content="why " * 100)]
    for turns in (asked, asked[-1:]):
        with pytest.raises(UserError, match="the context") as refused:
            fit_chat(tokenizer, turns, Room(context=64, max_tokens=8), truncate)
        assert "--context" in str(refused.value.hint)


def with_step(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """The tokenizer with the piece that makes it speak in Code Llama 70b's turns."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.path.read_bytes())  # type: ignore[attr-defined]
    model.pieces.add(piece="<step>", score=-1e4)
    path = folder / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return Tokenizer.load(path)
