"""Dialogs as token ids: the Llama 2 chat form, and the turns of Code Llama 70b Instruct.

The tokenizer decides the form: a `<step>` piece, which only 70b's has, means turns.
Ids are those of the released implementation (PAPER 6):

    llama2   BOS [INST] <<SYS>>\\nsystem\\n<</SYS>>\\n\\nuser [/INST] answer EOS
             BOS [INST] user [/INST]
    turns    BOS  Source: system\\n\\n text<step> Source: user\\n\\n text<step>
             Source: assistant\\nDestination: user\\n\\n answer<step>

`[INST]` and `<<SYS>>` are ordinary text to the tokenizer: `tags_in` finds them in what users typed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from codecria.data.errors import UserError

if TYPE_CHECKING:  # `generate --server` looks for tags alone
    from codecria.data.tokenizer.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
Form = Literal["llama2", "turns"]
TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<step>")
TO_USER = "user"  # where an assistant's turns go unless they say otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a dialog.

    Attributes:
        destination: whom it is meant for; only the turns form shows it.
        learned: whether the model is trained to write it, if it is an answer; else it is context.
    """

    role: Role
    content: str
    destination: str | None = None
    learned: bool = True


Dialog = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A dialog to train on.

    Attributes:
        ids: (T,) of all turns, BOS first.
        learned: (T,) which of them the model is to say itself: answers and what ends them.
    """

    ids: list[int]
    learned: list[bool]


def form_of(tokenizer: Tokenizer) -> Form:
    """The form a model with this tokenizer speaks."""
    return "llama2" if tokenizer.step_id is None else "turns"


def stop_id(tokenizer: Tokenizer) -> int:
    """The id that ends an answer."""
    return tokenizer.eos_id if tokenizer.step_id is None else tokenizer.step_id


def tags_in(dialog: Sequence[Message]) -> list[str]:
    """The tags of the chat forms that messages hold, which a model would take for turns."""
    return [tag for tag in TAGS if any(tag in message.content for message in dialog)]


def problem_of(dialog: Sequence[Message], *, answered: bool) -> str | None:
    """What is wrong with a dialog, or None.

    Args:
        dialog: an optional system message, then user and assistant in turn.
        answered: whether it must end with an answer, or with a question.
    """
    turns = dialog[1:] if dialog and dialog[0].role == "system" else dialog
    if not turns:
        return "it has no turns"
    for i, message in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if message.role != expected:
            return f"turn {i + 1} is of {message.role}, not of {expected}"
        if not message.content.strip() and message.role == "assistant":
            return f"turn {i + 1} is empty"
    last = turns[-1].role
    if answered and last != "assistant":
        return "it ends without an answer"
    if not answered and last != "user":
        return "it ends with an answer"
    return None


def prompt_ids(tokenizer: Tokenizer, dialog: Sequence[Message]) -> list[int]:
    """The ids after which the model answers.

    Raises:
        UserError: the dialog's turns do not alternate, or it does not end with the user's.
    """
    problem = problem_of(dialog, answered=False)
    if problem is not None:
        raise UserError(f"no dialog to answer: {problem}")
    if form_of(tokenizer) == "turns":
        return _turns_prompt(tokenizer, dialog)
    turns = _with_system(dialog)
    ids: list[int] = []
    for user, answer in zip(turns[::2], turns[1::2], strict=False):
        ids += [tokenizer.bos_id, *_finished(tokenizer, user, answer), tokenizer.eos_id]
    return [*ids, tokenizer.bos_id, *tokenizer.encode(_question(turns[-1]))]


def training_examples(tokenizer: Tokenizer, dialog: Sequence[Message]) -> list[Tokens]:
    """The sequences to train on, so that each answer of a dialog follows the ids of its prompt.

    In the llama2 form a finished dialog begins with the prompt of each of its answers, so one
    sequence holds them all. In the turns form an answer is encoded in one way while it is written
    and in another once it is history (`_turn`), so each answer has a sequence of its own:

        prompt and answer 1
        prompt, answer 1 as history, and answer 2

    Raises:
        UserError: the dialog's turns do not alternate, or it does not end with an answer.
    """
    whole = training_ids(tokenizer, dialog)
    if form_of(tokenizer) == "llama2":
        return [whole]
    ends = [n for n, m in enumerate(dialog, start=1) if m.role == "assistant" and m.learned]
    return [training_ids(tokenizer, dialog[:end]) for end in ends]


def training_ids(tokenizer: Tokenizer, dialog: Sequence[Message]) -> Tokens:
    """A whole dialog, with what is learned marked: every answer, or the last in the turns form.

    Answers that are context alone (`Message.learned`) are not marked.
    The ids before an answer that is learned are those of its prompt.

    Raises:
        UserError: the dialog's turns do not alternate, or it does not end with an answer.
    """
    problem = problem_of(dialog, answered=True)
    if problem is not None:
        raise UserError(f"no dialog to train on: {problem}")
    if form_of(tokenizer) == "turns":
        return _turns_training(tokenizer, dialog)
    turns = _with_system(dialog)
    answers = [message for message in dialog if message.role == "assistant"]
    ids: list[int] = []
    learned: list[bool] = []
    for user, answer in zip(turns[::2], answers, strict=True):
        both = _finished(tokenizer, user, answer.content)
        asked = _common(tokenizer.encode(_question(user)), both)
        ids += [tokenizer.bos_id, *both, tokenizer.eos_id]
        learned += [False] * (1 + asked) + [answer.learned] * (len(both) - asked + 1)
    return Tokens(ids=ids, learned=learned)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    for i, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return i
    return min(len(first), len(second))


def _with_system(dialog: Sequence[Message]) -> list[str]:
    """The contents of the turns in order, the system's inside the first."""
    contents = [message.content for message in dialog]
    if dialog[0].role == "system":
        contents[:2] = [f"<<SYS>>\n{contents[0]}\n<</SYS>>\n\n{contents[1]}"]
    return contents


def _question(user: str) -> str:
    return f"[INST] {user.strip()} [/INST]"


def _finished(tokenizer: Tokenizer, user: str, answer: str) -> list[int]:
    # The space after the answer is the release's; the model learns it, and it is stripped again.
    return tokenizer.encode(f"{_question(user)} {answer.strip()} ")


def answer_of(said: str) -> str:
    """The answer in what a model wrote, without the spaces that the form puts around it.

    One at its front and white space at its end: the indentation of a line of code is the answer's.

    >>> answer_of(" def f():\\n    pass ")
    'def f():\\n    pass'
    """
    return said.removeprefix(" ").rstrip()


def _header(message: Message) -> str:
    lines = [f" Source: {message.role}"]
    destination = message.destination
    if destination is None and message.role == "assistant":
        destination = TO_USER
    if destination is not None:
        lines.append(f"Destination: {destination.strip()}")
    return "\n".join(lines)


REPLY = Message(role="assistant", content="", destination=TO_USER)


def _turns(tokenizer: Tokenizer, dialog: Sequence[Message]) -> list[Message]:
    assert tokenizer.step_id is not None, "the turns form needs a <step> piece"
    if dialog[0].role == "system":
        return list(dialog)
    return [Message(role="system", content=""), *dialog]


def _turn(tokenizer: Tokenizer, message: Message) -> list[int]:
    """A finished turn: header and body are encoded each by itself, with a leading space each."""
    assert tokenizer.step_id is not None, "the turns form needs a <step> piece"
    body = message.content.strip()
    return [
        *tokenizer.encode(_header(message)),
        *(tokenizer.encode(f"\n\n {body}") if body else ()),
        tokenizer.step_id,
    ]


def _opening(tokenizer: Tokenizer, message: Message) -> list[int]:
    """What an answer is written after."""
    return tokenizer.encode(_header(message)) + tokenizer.encode("\n\n ")


def _turns_prompt(tokenizer: Tokenizer, dialog: Sequence[Message]) -> list[int]:
    ids = [tokenizer.bos_id]
    for message in _turns(tokenizer, dialog):
        ids += _turn(tokenizer, message)
    return ids + _opening(tokenizer, REPLY)


def _turns_training(tokenizer: Tokenizer, dialog: Sequence[Message]) -> Tokens:
    """The last answer after its prompt; those before it are history and not learned.

    The release shows prompts alone: what its training did with history is not known.
    """
    assert tokenizer.step_id is not None, "the turns form needs a <step> piece"
    *history, last = dialog
    ids = [tokenizer.bos_id]
    for message in _turns(tokenizer, history):
        ids += _turn(tokenizer, message)
    ids += _opening(tokenizer, last)
    answer = [*tokenizer.encode(last.content.strip(), leading_space=False), tokenizer.step_id]
    return Tokens(ids=[*ids, *answer], learned=[False] * len(ids) + [last.learned] * len(answer))
