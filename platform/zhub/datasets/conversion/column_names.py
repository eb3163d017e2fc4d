"""Names of columns that public datasets use, in lower case, and what they mean."""

PROMPTS = ("prompt", "question", "instruction", "query", "problem")
WEAK_PROMPTS = ("input", "text", "sentence")  # prompts only where there is an answer and no other prompt
ANSWERS = ("completion", "answer", "response", "output", "solution", "target", "label")
CONTEXTS = ("input", "context", "passage")
SYSTEMS = ("system", "system_prompt")
DIALOGUES = ("conversations", "conversation")
PARTS_OF_PROMPTS = ("choices", "options", "history")
"""Columns without which a prompt says something else, and for which there is no one way to write them."""
PAIRS = ("chosen", "rejected")
KNOWN = frozenset((*PROMPTS, *WEAK_PROMPTS, *ANSWERS, *CONTEXTS, *SYSTEMS, *DIALOGUES, *PARTS_OF_PROMPTS, *PAIRS))
