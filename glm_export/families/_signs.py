"""Which of ChatGLM2, ChatGLM3 and GLM-4 a folder holds: one layout of ``config.json``, three meanings of its keys.

Published names in ``_name_or_path`` go when a model is trained and saved again, and keys are added by hand. So every
file of the folder is asked, and those that speak must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glm_export.errors import ConfigError, shown

SECOND, THIRD, FOURTH = "chatglm2", "chatglm3", "glm4_remote"
EVERY = frozenset({SECOND, THIRD, FOURTH})
PUBLISHED_AS = {
    SECOND: ["chatglm2-6b", "chatglm2-6b-32k", "chatglm2-6b-int4", "codegeex2-6b", "codegeex2-6b-int4"],
    THIRD: ["chatglm3-6b", "chatglm3-6b-base", "chatglm3-6b-32k", "chatglm3-6b-128k"],
    FOURTH: [
        "glm-4-9b",
        "glm-4-9b-chat",
        "glm-4-9b-chat-1m",
        "codegeex4-all-9b",
        "LongWriter-glm4-9b",
        "LongCite-glm4-9b",
        "LongReward-glm4-9b-SFT",
        "LongReward-glm4-9b-DPO",
    ],
}
"""Names under which publishers released a family."""
PUBLISHERS = ("THUDM", "zai-org", "ZhipuAI")
FAMILY_OF = {
    f"{publisher}/{name}": family
    for family, names in PUBLISHED_AS.items()
    for name in names
    for publisher in PUBLISHERS
}
SIXTY_FIVE_THOUSAND, HUNDRED_FIFTY_THOUSAND = range(64000, 80000), range(150000, 170000)
"""Vocabulary sizes: 65024 of ChatGLM2 and 3, 151552 of GLM-4, and what tokens added to them make."""
FOURTH_EPSILON, SECOND_EPSILON = 1.5625e-07, 1e-05
RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFiles:
    """What other files of a folder tell of its family.

    ``tokenizer_config``: of ``tokenizer_config.json``, empty where there is none. ``tokenizer_start``: how
    ``tokenizer.model`` begins. ``template``: the chat template. ``tokenizer_code``: the text of
    ``tokenization_chatglm.py``, which is read, never run.
    """

    tokenizer_config: Mapping[str, Any]
    tokenizer_start: bytes = b""
    template: str = ""
    tokenizer_code: str = ""


NO_FILES = FolderFiles(tokenizer_config={})


@dataclass(frozen=True, slots=True)
class Sign:
    """What speaks, and for which families."""

    what: str
    families: frozenset[str]

    def __str__(self) -> str:
        return f"{self.what} ({' or '.join(sorted(self.families))})"


def tell_chatglm(values: Mapping[str, Any], files: FolderFiles) -> tuple[str, str]:
    """The family of a config with ``multi_query_attention``, and a warning where ChatGLM2 and 3 are as likely.

    Raises:
        ConfigError: signs disagree, or none tells whether positions or the base are scaled.
    """
    signs = [*_of_config(values), *_of_files(files)]
    left = _agreed(signs) if signs else EVERY
    hints = [hint for hint in _hints(values) if hint.families & left]
    left &= _agreed(hints) if hints else EVERY
    if len(left) == 1:
        return next(iter(left)), ""
    ratio = values.get("rope_ratio", 1)
    if ratio not in (1, None):
        ratio = shown(ratio)
        raise ConfigError(
            f"nothing in the folder tells {' from '.join(sorted(left))}, and config.json has rope_ratio {ratio}: "
            "ChatGLM2 divides positions by it, ChatGLM3 and GLM-4 multiply the base; say --family"
        )
    if left == EVERY:
        return (
            SECOND,
            "nothing in the folder tells ChatGLM2, ChatGLM3 and GLM-4 apart: taken for chatglm2; say --family",
        )
    family = SECOND if SECOND in left else min(left)
    return family, (
        f"nothing in the folder tells {' from '.join(sorted(left))}: the numbers are the same, prompts and stop "
        f"ids are not. Taken for {family}; say --family if it is the other"
    )


def _agreed(signs: list[Sign]) -> frozenset[str]:
    left = EVERY
    for index, sign in enumerate(signs):
        if not left & sign.families:
            before = signs[:index]
            clash = next((other for other in before if not other.families & sign.families), None)
            told = str(clash) if clash else " with ".join(map(str, before))
            raise ConfigError(
                f"the folder says two things of its family: {told}, and {sign}; mend the one that is wrong, or say "
                "--family"
            )
        left &= sign.families
    return left


def _only(*families: str) -> frozenset[str]:
    return frozenset(families)


def _of_config(values: Mapping[str, Any]) -> Iterator[Sign]:
    yield from _names("_name_or_path in config.json", values.get("_name_or_path"))
    yield from _names("auto_map in config.json", *_repositories(values))
    vocabulary = values.get("padded_vocab_size")
    if vocabulary in SIXTY_FIVE_THOUSAND:
        yield Sign(f"padded_vocab_size {vocabulary}", _only(SECOND, THIRD))
    elif vocabulary in HUNDRED_FIFTY_THOUSAND:
        yield Sign(f"padded_vocab_size {vocabulary}", _only(FOURTH))


def _of_files(files: FolderFiles) -> Iterator[Sign]:
    name = "tokenizer_config.json"
    yield from _names(f"name_or_path in {name}", files.tokenizer_config.get("name_or_path"))
    yield from _names(f"auto_map in {name}", *_repositories(files.tokenizer_config))
    if files.tokenizer_config.get("tokenizer_class") == "ChatGLM4Tokenizer":
        yield Sign(f"tokenizer_class ChatGLM4Tokenizer in {name}", _only(FOURTH))
    if files.tokenizer_start:
        ranks = RANK_LINE.match(files.tokenizer_start) is not None
        told = "tokenizer.model holds ranks of tiktoken" if ranks else "tokenizer.model is of SentencePiece"
        yield Sign(told, _only(FOURTH) if ranks else _only(SECOND, THIRD))
    added = _contents(files.tokenizer_config.get("added_tokens_decoder"))
    for what, text in (
        (f"added_tokens_decoder in {name}", added),
        ("the chat template", files.template),
        ("tokenization_chatglm.py", files.tokenizer_code),
    ):
        if "<|observation|>" in text or "<|assistant|>" in text:
            yield Sign(f"roles like <|assistant|> in {what}", _only(THIRD, FOURTH))
        elif "[Round " in text:
            yield Sign(f"'[Round' in {what}", _only(SECOND))


def _contents(added: Any) -> str:
    tokens = added.values() if isinstance(added, Mapping) else ()
    return " ".join(str(token.get("content")) for token in tokens if isinstance(token, Mapping))


def _hints(values: Mapping[str, Any]) -> Iterator[Sign]:
    """What is usual, and not said: only asked where the signs leave it open."""
    epsilon = values.get("layernorm_epsilon")
    if epsilon in (FOURTH_EPSILON, SECOND_EPSILON):
        families = _only(FOURTH) if epsilon == FOURTH_EPSILON else _only(SECOND, THIRD)
        yield Sign(f"layernorm_epsilon {epsilon}", families)
    if isinstance(values.get("eos_token_id"), list):
        yield Sign("several stop ids", _only(THIRD, FOURTH))


def _names(what: str, *names: Any) -> Iterator[Sign]:
    for name in names:
        if isinstance(name, str) and name in FAMILY_OF:
            yield Sign(f"{name} as {what}", _only(FAMILY_OF[name]))


def _repositories(values: Mapping[str, Any]) -> list[str]:
    """What stands before ``--`` in an ``auto_map``: the repository the code comes from."""
    table = values.get("auto_map")
    if not isinstance(table, Mapping):
        return []
    entries = [entry for value in table.values() for entry in (value if isinstance(value, list) else [value])]
    return [entry.split("--")[0] for entry in entries if isinstance(entry, str) and "--" in entry]
