"""Texts that a reader which looks back or ahead without a bound takes quadratic time for, or more."""

# Each is repeated.
NASTY = [
    "1\u00a0", "1e", "1 ", "1/", "1,", ",1", "1-", "1:", "1.", "111 ", "1^", "1^{", "1'", "1_", "1 x ", "1+", "1=", "-",
    "$-", "7", " ", "\u00a0", "\n", "\u00bd", "{", "\\", "\\{", "\\boxed{", "\\boxed {", "\\frac", "\\frac{", "\\sqrt{",
    "x_{", "**", "#", "####", "answer ", "answer is ", "answer: ", "negative ", "1 million ", "1 per ", "1\u00d710^",
    "(", "((1", "*", "_", "[", "answer" + " " * 9, "option\n", "A ", "(A) ", "B.", "(A",
]  # fmt: skip
