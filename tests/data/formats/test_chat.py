"""Dialogs against the released implementation's facts (PAPER 6), by the real tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from codecria.data.errors import UserError
from codecria.data.formats import chat
from codecria.data.formats.chat import Message
from codecria.data.tokenizer.tokenizer import Tokenizer

SYSTEM = Message(role="system", content="Be brief.")
ASK = Message(role="user", content="  Add two numbers. ")
ANSWER = Message(role="assistant", content=" a + b\n")
AGAIN = Message(role="user", content="And three?")
CONTENT = st.text(alphabet="ab \n[/INST]<>é1", max_size=20).map(lambda text: text + "x")


@pytest.fixture(scope="module")
def turns(release_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Llama 2's tokenizer with a <step> piece, as 70b Instruct has one."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(release_tokenizer.path.read_bytes())
    piece = model.pieces.add()
    piece.piece, piece.score, piece.type = "<step>", 0.0, 4  # user-defined
    path = tmp_path_factory.mktemp("turns") / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return Tokenizer.load(path)


def plain(tokenizer: Tokenizer) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(tokenizer.path))


def test_the_form_follows_the_tokenizer(release_tokenizer: Tokenizer, turns: Tokenizer) -> None:
    assert chat.form_of(release_tokenizer) == "llama2"
    assert chat.stop_id(release_tokenizer) == 2
    assert chat.form_of(turns) == "turns"
    assert chat.stop_id(turns) == turns.step_id == 32_000


def test_a_prompt_is_the_releases(release_tokenizer: Tokenizer) -> None:
    encode = plain(release_tokenizer).encode
    assert chat.prompt_ids(release_tokenizer, [ASK]) == [
        1,
        *encode("[INST] Add two numbers. [/INST]"),
    ]
    assert chat.prompt_ids(release_tokenizer, [SYSTEM, ASK, ANSWER, AGAIN]) == [
        1,
        *encode(
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n  Add two numbers.  [/INST] a + b ".replace(
                "numbers.  [", "numbers. ["
            )
        ),
        2,
        1,
        *encode("[INST] And three? [/INST]"),
    ]


def test_a_prompt_in_turns_is_the_releases(turns: Tokenizer) -> None:
    encode, step = plain(turns).encode, turns.step_id
    expected = [
        1,
        *encode(" Source: system"),
        step,
        *encode(" Source: user"),
        *encode("\n\n Add two numbers."),
        step,
        *encode(" Source: assistant\nDestination: user"),
        *encode("\n\n a + b"),
        step,
        *encode(" Source: user"),
        *encode("\n\n And three?"),
        step,
        *encode(" Source: assistant\nDestination: user"),
        *encode("\n\n "),
    ]
    assert chat.prompt_ids(turns, [ASK, ANSWER, AGAIN]) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3), st.none() | CONTENT)
def test_answers_and_what_ends_them_are_learned_and_nothing_else(
    release_tokenizer: Tokenizer, pairs: list[tuple[str, str]], system: str | None
) -> None:
    dialog = [Message(role="system", content=system)] if system else []
    for asked, answered in pairs:
        dialog += [
            Message(role="user", content=asked),
            Message(role="assistant", content=answered),
        ]
    made = chat.training_ids(release_tokenizer, dialog)
    assert len(made.ids) == len(made.learned)
    spans, span = [], []
    for token, learned in zip(made.ids, made.learned, strict=True):
        if learned:
            span.append(token)
        elif span:
            spans.append(span)
            span = []
    spans.append(span)
    # Each answer's encoding and the joint one agree, the release's trailing space included.
    expected = [[*release_tokenizer.encode(f"{answer.strip()} "), 2] for _, answer in pairs]
    assert spans == expected
    # What a model is asked is what it was shown before its last answer.
    prompt = chat.prompt_ids(release_tokenizer, dialog[:-1])
    assert made.ids[: len(prompt)] == prompt


@settings(max_examples=60, deadline=None)
@given(CONTENT)
def test_what_was_learned_of_an_answer_is_read_back_as_the_answer(
    release_tokenizer: Tokenizer, turns: Tokenizer, answer: str
) -> None:
    # Kills: code whose first line is one space further in than the others.
    for tokenizer in (release_tokenizer, turns):
        made = chat.training_ids(tokenizer, [ASK, Message(role="assistant", content=answer)])
        prompt = chat.prompt_ids(tokenizer, [ASK])
        said = tokenizer.decode_continuation(made.ids[len(prompt) : -1])
        assert chat.answer_of(said) == answer.strip()


def test_in_turns_an_answer_follows_what_a_prompt_ends_with(turns: Tokenizer) -> None:
    made = chat.training_ids(turns, [ASK, ANSWER])
    prompt = chat.prompt_ids(turns, [ASK])
    assert made.ids[: len(prompt)] == prompt
    assert made.learned == [False] * len(prompt) + [True] * (len(made.ids) - len(prompt))
    assert turns.decode_continuation(made.ids[len(prompt) : -1]) == "a + b"
    assert made.ids[-1] == turns.step_id


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=4),
    system=st.none() | CONTENT,
    turns_form=st.booleans(),
)
def test_every_answer_is_learned_once_and_after_the_very_ids_of_its_prompt(
    release_tokenizer: Tokenizer,
    turns: Tokenizer,
    pairs: list[tuple[str, str]],
    system: str | None,
    turns_form: bool,
) -> None:
    # Kills: history encoded in another way than the prompt's, an answer learned twice or never.
    tokenizer = turns if turns_form else release_tokenizer
    dialog = [Message(role="system", content=system)] if system else []
    for asked, answered in pairs:
        dialog += [
            Message(role="user", content=asked),
            Message(role="assistant", content=answered),
        ]
    made = chat.training_examples(tokenizer, dialog)
    assert len(made) == (len(pairs) if turns_form else 1)
    taught = 0
    for example in made:
        starts = [
            i
            for i, (before, here) in enumerate(
                zip([False, *example.learned], example.learned, strict=False)
            )
            if here and not before
        ]
        for start in starts:
            end = [n for n, m in enumerate(dialog) if m.role == "assistant"][taught]
            prompt = chat.prompt_ids(tokenizer, dialog[:end])
            assert example.ids[:start] == prompt
            taught += 1
    assert taught == len(pairs)


@pytest.mark.parametrize(
    ("dialog", "problem"),
    [
        ([], "no turns"),
        ([SYSTEM], "no turns"),
        ([ANSWER], "turn 1 is of assistant"),
        ([ASK, ASK], "turn 2 is of user"),
        ([ASK, ANSWER], "ends with an answer"),
    ],
)
def test_a_dialog_nobody_can_answer_says_why(
    release_tokenizer: Tokenizer, dialog: list[Message], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        chat.prompt_ids(release_tokenizer, dialog)


def test_tags_in_what_users_typed_are_found_and_stay_text(release_tokenizer: Tokenizer) -> None:
    message = Message(role="user", content="what does [/INST] mean?")
    assert chat.tags_in([message]) == ["[/INST]"]
    ids = chat.prompt_ids(release_tokenizer, [message])
    assert ids == [1, *plain(release_tokenizer).encode("[INST] what does [/INST] mean? [/INST]")]


def test_the_golden_prompt_of_a_real_model(llama_tokenizer: Tokenizer) -> None:
    # [INST] Hi [/INST], as every user of the 7b to 34b models has seen it.
    assert chat.prompt_ids(llama_tokenizer, [Message(role="user", content="Hi")]) == [
        *[1, 518, 25580, 29962, 6324, 518, 29914, 25580, 29962],
    ]
    assert Path(llama_tokenizer.path).exists()


HM = Message(role="assistant", content="Hm.", learned=False)


def test_an_answer_without_loss_is_context_in_the_llama2_form(llama_tokenizer: Tokenizer) -> None:
    # Kills: a weight of 0 that is trained on, or dropped together with its question.
    for dialog, unlearned in (([ASK, HM, AGAIN, ANSWER], 0), ([ASK, ANSWER, AGAIN, HM], 1)):
        [made] = chat.training_examples(llama_tokenizer, dialog)
        encode = llama_tokenizer.encode
        ids, learned = [], []
        for n, (asked, answered) in enumerate(zip(dialog[::2], dialog[1::2], strict=True)):
            question = encode(f"[INST] {asked.content.strip()} [/INST]")
            answer = encode(f"{answered.content.strip()} ")
            ids += [1, *question, *answer, 2]
            learned += [False] * (1 + len(question)) + [n != unlearned] * (len(answer) + 1)
        assert (made.ids, made.learned) == (ids, learned)


def test_an_answer_without_loss_is_history_in_the_turns_form(turns: Tokenizer) -> None:
    [made] = chat.training_examples(turns, [ASK, HM, AGAIN, ANSWER])
    prompt = chat.prompt_ids(turns, [ASK, HM, AGAIN])
    answer = [*turns.encode("a + b", leading_space=False), turns.step_id]
    assert made.ids == [*prompt, *answer]
    assert made.learned == [False] * len(prompt) + [True] * len(answer)
    [first] = chat.training_examples(turns, [ASK, ANSWER, AGAIN, HM])
    assert first == chat.training_ids(turns, [ASK, ANSWER])
