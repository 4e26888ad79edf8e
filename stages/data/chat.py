"""Instruct models: put the template into the model's own chat template."""

import re
from datetime import date

from transformers import PreTrainedTokenizerBase

from stages.data.task import fill_template, parse_columns
from stages.runtime.errors import UserError, first_line
from stages.runtime.params import Tokenize

DATE = date(2024, 7, 26)  # what a chat template reads as today, on every day: Llama 3's template has it as its default
INNER_PROBE = "a \t\r\n\n'b' \"c\" {d} {{e}} [f] <g> &amp; \\n é \u00a0 🙂 a"  # what a template may escape or remove
OUTER_PROBES = ("", " ", " a ", "\na\n")  # what a template may remove at the ends of a message


def apply_chat(tokenizer: PreTrainedTokenizerBase, settings: Tokenize, name: str) -> str:
    """The template of what the model reads: `tokenize.template`, in a user's message of the model's chat template.

    It ends with the generation prompt. A filled template has the tokens of `tokenizer.apply_chat_template`, except that
    the names of special tokens in a row's texts are text. The chat template's own options, such as Qwen3's
    `enable_thinking`, have their defaults, and its date is `DATE`.

    Args:
        settings: the section `tokenize` of params.yaml. With `chat: false`, the result is its `template`.
        name: of the model, for errors.

    Raises:
        UserError: the model has no chat template, or its chat template raises an error, has no system message, or
            changes the texts.
    """
    template, system = settings.template, settings.system
    if not settings.chat:
        return template
    if tokenizer.chat_template is None:
        raise UserError(
            f"params.yaml: tokenize.chat: {name} has no chat template; set tokenize.chat: false, or choose an instruct "
            "model"
        )
    for key, message, advice in (
        ("chat", None, "set it to false, or choose another model"),
        ("system", system, "leave it empty, and write its text into tokenize.template"),
    ):
        try:
            prompt = render_chat(tokenizer, template, message)
        except Exception as error:  # of any kind, by the chat template
            raise UserError(
                f"params.yaml: tokenize.{key}: the chat template of {name} does not render ({first_line(error)}); "
                f"{advice}"
            ) from error
    check_prompt(prompt, settings, name)
    check_texts(prompt, tokenizer, settings, name)
    return prompt


def check_prompt(prompt: str, settings: Tokenize, name: str) -> None:
    """Reject a chat template that leaves a message out, or has text that this project reads as a column."""
    columns, found = set(parse_columns(settings.template)), set(parse_columns(prompt))
    if columns - found:
        raise UserError(
            f"params.yaml: tokenize.chat: the chat template of {name} leaves the user's message out; set it to false, "
            "or choose another model"
        )
    if settings.system and settings.system.strip() not in prompt:
        raise UserError(
            f"params.yaml: tokenize.system: the chat template of {name} leaves it out; leave it empty, and write its "
            "text into tokenize.template"
        )
    if found - columns:
        raise UserError(
            f"params.yaml: tokenize.chat: the chat template of {name} has braces, which would be read as a column: "
            f"{{{min(found - columns)}}}; set it to false"
        )


def check_texts(prompt: str, tokenizer: PreTrainedTokenizerBase, settings: Tokenize, name: str) -> None:
    """Reject a chat template that changes a row's texts, other than the names of special tokens.

    Many chat templates remove whitespace at the ends of a message. That is no change if a row's text is at neither end.
    """
    columns = parse_columns(settings.template)

    def is_unchanged(texts: dict[str, str]) -> bool:
        message = fill_template(settings.template, texts)
        return render_chat(tokenizer, message, settings.system) == fill_template(prompt, texts)

    if not is_unchanged(dict.fromkeys(columns, INNER_PROBE)):
        raise UserError(
            f"params.yaml: tokenize.chat: the chat template of {name} changes texts, such as their quotes or line "
            "breaks; set it to false"
        )
    plain = dict.fromkeys(columns, "a")
    for probe in OUTER_PROBES:
        for texts in (dict.fromkeys(columns, probe), *(plain | {column: probe} for column in columns)):
            if not is_unchanged(texts):
                raise UserError(
                    f"params.yaml: tokenize.template: the chat template of {name} removes whitespace at the ends of a "
                    "message, so no column may be there; begin and end with words, such as "
                    f'"Text: {{{columns[0]}}}\\nClass:"'
                )


def describe_chat(tokenizer: PreTrainedTokenizerBase, settings: Tokenize, name: str) -> list[str]:
    """A line for the user if the model has a chat template and `tokenize.chat` is false."""
    if settings.chat or tokenizer.chat_template is None:
        return []
    return [
        f"{name} has a chat template, but tokenize.chat is false; an instruct model was trained with it: to use it, "
        "set tokenize.chat: true"
    ]


def render_chat(tokenizer: PreTrainedTokenizerBase, message: str, system: str | None = None) -> str:
    """Render the model's chat template, with the generation prompt at the end.

    Args:
        message: the user's.
        system: the system message; None: none.

    Raises:
        Exception: of any kind, by the chat template.
    """
    turns = [{"role": "system", "content": system}] if system is not None else []
    chat_template = freeze_date(tokenizer.get_chat_template())
    prompt = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": message}],
        chat_template=chat_template,
        tokenize=False,
        add_generation_prompt=True,
    )
    return str(prompt)


def freeze_date(chat_template: str) -> str:
    """Replace today's date in a chat template by `DATE`, or the same parameters would give other tokens tomorrow.

    Raises:
        ValueError: the format of a date is not written as text.
    """
    frozen = re.sub(
        r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", lambda call: repr(DATE.strftime(call[2])), chat_template
    )
    if re.search(r"strftime_now\s*\(", frozen):
        raise ValueError("it reads today's date in a way that this project cannot replace")
    return frozen


def ends_as_chat(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a template ends as the model's chat template ends after the user's message."""
    if tokenizer.chat_template is None:
        return False
    try:
        prompt = render_chat(tokenizer, placeholder := "{text}")
    except Exception:  # of any kind, by the chat template
        return False
    _, found, end = prompt.rpartition(placeholder)
    return bool(found and end.strip()) and template.endswith(end)
