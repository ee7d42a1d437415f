"""A grammar, compiled where it can do no harm: run as a script, it reads one from stdin and answers on stdout.

llguidance follows definitions as deep as they go, on the stack, and a chain of thousands ends the process. What passes
here, on a stack smaller than any thread's, may be compiled in the server. Imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

STACK_BYTES = 1 << 19
MEMORY_BYTES = 1 << 31
SECONDS = 2
"""Of computing."""


def written(kind: str, text: str) -> str:
    """A grammar in llguidance's own form.

    Args:
        kind: json_schema, regex, lark or gbnf.
        text: the grammar.
    """
    import llguidance

    if kind == "json_schema":
        # Blanks anywhere would be blanks without end, for a model that likes them: one behind a comma or a colon, as
        # Python's json.dumps writes it, or none.
        blanks: Any = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
        return llguidance.LLMatcher.grammar_from_json_schema(text, defaults=blanks)
    return llguidance.grammar_from(kind, text)  # type: ignore[arg-type]


def tried(kind: str, text: str) -> dict[str, str]:
    """``grammar``, or ``error``: what is wrong with it."""
    import llguidance

    try:
        grammar = written(kind, text)
        matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
        error = matcher.get_error()
        if not error:
            matcher.compute_bitmask()
            error = matcher.get_error()
    except Exception as failed:
        error = str(failed)
    return {"error": error} if error else {"grammar": grammar}


def main() -> None:
    """Within limits, where the system has them."""
    sys.path += sys.argv[1:]
    try:
        import resource
    except ImportError:  # Windows: whoever waits has a clock
        pass
    else:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asked = json.load(sys.stdin)
    threading.stack_size(STACK_BYTES)
    answer: dict[str, str] = {}
    thread = threading.Thread(target=lambda: answer.update(tried(asked["kind"], asked["text"])))
    thread.start()
    thread.join()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
