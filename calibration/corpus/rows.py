"""One row of a file -> samples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from glm_export.calibration.corpus.corpus import Sample, Task
from glm_export.calibration.corpus.shapes import COMPLETION, MESSAGES, messages_of, shape_of
from glm_export.calibration.corpus.turns import string_field, tools_of
from glm_export.errors import InputError
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.spec.config import GlmConfig
from glm_export.tokenizers import Tokenizer, stop_ids
from glm_export.tokenizers.chat import Message
from glm_export.tokenizers.ice_text import IceTextTokenizer
from glm_export.tokenizers.infilling import InfillingTokenizer

# As the embedded GLM learnt its poems.
MOST_LINES = 8
PARAGRAPH_END = re.compile(r"\n\s*\n")

# -- rows --------------------------------------------------------------------------------------------------------------


class RowReader:
    """Makes samples for one model. ``limit``: tokens of a row of text, with what the family puts around it."""

    def __init__(self, tokenizer: Tokenizer, config: GlmConfig, limit: int) -> None:
        self._tokenizer, self._config = tokenizer, config
        # What stands around an empty text stands around every text; for prefix families from the mask on behind it.
        frame = self._given("")
        if config.prefix_mask:
            place = self._prompt(frame).mask_position
            self._before, self._behind = frame[:place], frame[place:]
        else:
            self._before, self._behind = frame[: len(frame) - len(tokenizer.encode_plain(""))], []
        self._room = limit - len(frame)

    def checked(self, sample: Sample) -> Sample:
        """The sample, where a session would take it.

        Raises:
            InputError: no token, an id outside the vocabulary, or more than the context holds.
        """
        task = sample.task
        prefill_feeds([sample.prompt, *([task.prompt] if task else [])], self._config)
        # The last of a task's tokens only ends it.
        if task and task.prompt.remaining_tokens(self._config) < task.longest - 1:
            raise InputError(
                f"prompt and completion have {len(task.prompt.ids) + task.longest - 1} tokens, the model's context "
                f"{self._config.text_positions}; shorten them"
            )
        return sample

    def of_row(self, row: dict[str, Any]) -> list[Sample]:
        """Samples of one JSON row: several of a long text, none of a poem that is passed over."""
        match shape_of(row):
            case ("text",):
                return self._text(string_field(row["text"], "text"))
            case ("input_ids",):
                return [self._ids(row["input_ids"])]
            case ("lines",):
                return self._poem(row["lines"])
            case keys if keys == COMPLETION:
                prompt, completion = (string_field(row[key], key) for key in keys)
                return [self._completion(prompt, completion)]
            case shape:
                asked = shape[0] not in MESSAGES
                return [self._conversation(messages_of(row, shape), tools_of(row), asked=asked)]

    def packed(self, text: str) -> Iterator[Sample]:
        """Paragraphs one after the other, as many in a row as fit."""
        row = ""
        for paragraph in filter(None, map(str.strip, PARAGRAPH_END.split(text))):
            longer = f"{row}\n{paragraph}" if row else paragraph
            if len(self._tokenizer.encode_plain(longer)) > self._room:
                yield from self._plain(row)
                longer = paragraph
            row = longer
        yield from self._plain(row)

    def _plain(self, text: str) -> list[Sample]:
        """A text in pieces of like length, so that the last one is no stump."""
        ids = self._tokenizer.encode_plain(text)
        pieces = -(-len(ids) // self._room)
        return [self._framed(ids[i * len(ids) // pieces : (i + 1) * len(ids) // pieces]) for i in range(pieces)]

    def _framed(self, ids: list[int]) -> Sample:
        if not self._config.prefix_mask:
            return self._causal([*self._before, *ids])
        # Half is read, half is written for the mask between.
        half = len(ids) // 2
        given = [*self._before, *ids[:half], *self._behind]
        # The mask is not searched: the text itself may have one in it.
        place = len(self._before) + half
        prompt = Prompt(ids=(*given, *ids[half:]), context_length=len(given) - 1, mask_position=place)
        return Sample(prompt=prompt, counted_from=len(given))

    def _causal(self, ids: Sequence[int]) -> Sample:
        """The family's own prefix is no text, and nothing predicts the first token."""
        prefix = len(self._before) if list(ids[: len(self._before)]) == self._before else 0
        return Sample(prompt=Prompt(ids=tuple(ids)), counted_from=max(1, prefix))

    def _as_given(self, ids: Sequence[int]) -> Sample:
        if not self._config.prefix_mask:
            return self._causal(ids)
        prompt = self._prompt(ids)
        return Sample(prompt=prompt, counted_from=prompt.context_length + 1)

    def _text(self, text: str) -> list[Sample]:
        samples = self._plain(text)
        if not samples:
            raise InputError("the text has no token; give the row words, or remove it")
        return samples

    def _conversation(self, messages: list[Message], tools: Any, *, asked: bool) -> Sample:
        """A chat as it is served: read up to where the model speaks; where its reply is given, that is written.

        ``asked``: the row is a question and its reply. A family without chats continues the question.
        """
        if asked and isinstance(self._tokenizer, InfillingTokenizer):
            question, reply = (message["content"] for message in messages[-2:])
            return replace(self._completion(question, reply), task=None)
        if not messages or messages[-1]["role"] != "assistant":
            return self._as_given(self._tokenizer.chat(messages, tools=tools))
        if not messages[:-1]:
            raise InputError("a reply needs a question before it, found the assistant's turn alone; add the user's")
        given = self._tokenizer.chat(messages[:-1], tools=tools)
        return self._as_given([*given, *self._reply(messages, given, tools)])

    def _reply(self, messages: list[Message], given: list[int], tools: Any) -> list[int]:
        """Ids of the last message as the prompt of its family has them, between ``given`` and the role that follows.

        The prompt itself shows it: it is rendered once more, with another question behind the reply.
        """
        whole = self._tokenizer.chat([*messages, Message(role="user", content="?")], tools=tools)
        written = whole[len(given) :] if whole[: len(given)] == given else []
        ends = set(stop_ids(self._config, self._tokenizer))
        place = next((place for place, index in enumerate(written) if index in ends), None)
        if place is not None:
            return written[:place]
        # Rounds have no role that ends a reply; what is generated is the text's own ids.
        content = messages[-1]["content"]
        if not isinstance(content, str) or not content:
            raise InputError(
                "the last turn should be a text, since this model's prompt does not say where a call ends; drop it"
            )
        return self._tokenizer.encode_plain(content)

    def _ids(self, ids: Any) -> Sample:
        # True is an int to Python, and no token to anyone.
        if not isinstance(ids, list) or not ids or not all(type(index) is int for index in ids):
            raise InputError("input_ids should be a list of at least one whole number; rewrite the row")
        return self._as_given(ids)

    def _completion(self, prompt: str, completion: str) -> Sample:
        given = self._given(prompt)
        if self._config.prefix_mask:
            sample = self._as_given([*given, *self._tokenizer.encode_plain(completion)])
        else:
            # As one text, without a seam. A token may reach over the border, and then belongs to the completion.
            whole = self._tokenizer.encode(prompt + completion)
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(given, whole, strict=False)))
            sample = Sample(prompt=Prompt(ids=tuple(whole)), counted_from=max(1, shared))
        if sample.counted_from >= len(sample.prompt.ids):
            raise InputError("the completion has no token; give it words, or write the row as text")
        return replace(sample, task=self._task(given, completion))

    def _poem(self, lines: Any) -> list[Sample]:
        if not isinstance(lines, list) or not lines:
            raise InputError("lines should be a list of a poem's lines; rewrite the row")
        lines = [string_field(line, "a line") for line in lines]
        if isinstance(self._tokenizer, InfillingTokenizer):
            return self._blanked(self._tokenizer, lines)
        # A long poem is cut as any text is; its task goes with the beginning.
        first, *others = self._text("\n".join(lines))
        task = self._task(self._given(lines[0]), lines[1]) if len(lines) > 1 else None
        return [replace(first, task=task), *others]

    def _blanked(self, tokenizer: InfillingTokenizer, lines: list[str]) -> list[Sample]:
        """The middle line is written for its blank."""
        blank, middle = "[sMASK]" if "[sMASK]" in tokenizer.mask_ids else "[MASK]", len(lines) // 2
        text = "".join(blank if index == middle else line for index, line in enumerate(lines))
        given = [*tokenizer.encode(text), tokenizer.sop_id]
        sample = self._as_given([*given, *tokenizer.encode_plain(lines[middle])])
        fits = (
            sample.prompt.context_length <= self._config.max_positions
            and sample.prompt.remaining_tokens(self._config) >= 0
        )
        return [replace(sample, task=self._task(given, lines[middle]))] if fits and len(lines) <= MOST_LINES else []

    def _task(self, given: Sequence[int], completion: str) -> Task:
        longest = len(self._tokenizer.encode_plain(completion)) + 1
        return Task(prompt=self._as_given(given).prompt, completion=completion, longest=longest)

    def _given(self, text: str) -> list[int]:
        """Ids from which the model writes on; a blank in the text is where it writes, else one is put at the end."""
        tokenizer = self._tokenizer
        if isinstance(tokenizer, InfillingTokenizer):
            return tokenizer.generation_ids(text)
        if isinstance(tokenizer, IceTextTokenizer):
            plain = tokenizer.encode_plain(text)
            if set(plain) & set(tokenizer.mask_ids.values()):
                return [*plain, tokenizer.sop_id]
        return tokenizer.encode(text)

    def _prompt(self, ids: Sequence[int]) -> Prompt:
        """Find ``<sop>`` and the mask that is written for, with the same preference as a session."""
        sop, kinds = self._config.sop_token_id, [{index} for index in self._config.mask_token_ids]
        if sop is None:
            if not isinstance(self._tokenizer, InfillingTokenizer):
                raise InputError(f"family {self._config.family} needs its own tokenizer to find <sop> and masks")
            sop, kinds = self._tokenizer.sop_id, [set(self._tokenizer.mask_ids.values())]
        context = list(ids[: ids.index(sop)]) if sop in ids else []
        places = [place for kind in kinds for place, index in enumerate(context) if index in kind]
        if not places:
            raise InputError(f"a mask and then the start of a piece ({sop}) are expected in the ids; add them")
        return Prompt(ids=tuple(ids), context_length=len(context), mask_position=places[0])
