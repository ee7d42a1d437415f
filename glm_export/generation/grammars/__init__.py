"""Text that must have a form: JSON schemas, regular expressions and grammars as masks over a model's tokens.

The only room that imports llguidance, when a grammar is asked for. Imports tokenizers.
"""

from glm_export.generation.grammars.grammar import Grammar, GrammarMatcher
from glm_export.generation.grammars.vocabulary import GrammarVocabulary, token_bytes

__all__ = ["Grammar", "GrammarMatcher", "GrammarVocabulary", "token_bytes"]
