"""The chat forms as Jinja templates, for tools that read them from a checkpoint.

They give the text whose ids `data/formats/chat.py` builds, so that other tools prompt a model as it
was trained. They do not search a user's text for tags; `codecria generate` warns of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codecria.data.formats.chat import Form, form_of
from codecria.data.tokenizer.tokenizer import Tokenizer

INSTRUCT_RECIPE = "instruct"  # the stage after which a model answers in its chat form
_ALTERNATE = (
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns, the user first') }}"
    "{% endif %}"
)
_SPLIT = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = none %}{% set turns = messages %}{% endif %}"
)
TEMPLATES: Mapping[Form, str] = {
    "llama2": _SPLIT + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system is not none %}"
    "{{ ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content']) | trim }}"
    "{% else %}{{ message['content'] | trim }}{% endif %}"
    "{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}",
    "turns": _SPLIT + "{{ bos_token + ' Source: system' }}"
    "{% if system %}{{ ' \\n\\n ' + system }}{% endif %}{{ '<step>' }}"
    + _ALTERNATE
    + "{{ ' Source: ' + message['role'] }}"
    "{% if message['role'] == 'assistant' %}{{ '\\nDestination: user' }}{% endif %}"
    "{{ ' \\n\\n ' + message['content'] | trim + '<step>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ ' Source: assistant\\nDestination: user \\n\\n ' }}"
    "{% endif %}",
}


def template_note(template: str, tokenizer: Tokenizer) -> str | None:
    """What a user should know where a checkpoint's own template is another than the form used.

    Args:
        template: the checkpoint's, in Jinja, or empty.
        tokenizer: its tokenizer, which decides the form (`data/formats/chat.py`).

    Returns:
        a line; None where there is no template, or one of the form that is used.
    """
    form = form_of(tokenizer)
    marks = ("[INST]", "<<SYS>>") if form == "llama2" else ("Source:", "<step>")
    if not template or all(mark in template for mark in marks):
        return None
    used = "the Llama 2 form ([INST] ... [/INST])" if form == "llama2" else "Code Llama 70B's form"
    return f"the model's own chat template is not used: the question is put in {used}"


def template_for(tokenizer: Tokenizer | None, lineage: Mapping[str, Any]) -> str:
    """The template of a model that was tuned on dialogs; empty for every other."""
    if tokenizer is None:
        return ""
    stages = [lineage, *lineage.get("ancestors", [])]
    tuned = any(stage.get("recipe") == INSTRUCT_RECIPE for stage in stages)
    return TEMPLATES[form_of(tokenizer)] if tuned else ""
