"""Reads the numbers of a text, each whole: grouped digits, fractions, powers, scales, percentages, LaTeX.

A chunk of digits that is not understood whole ("12,34", "3.2.1", "2024-05-06", "2\\sqrt{3}") is one unreadable
number, never a shorter number within it. Reading takes one pass: the text becomes lexemes by patterns that match a run
of one kind of character, and what looks ahead looks at most MAX_AHEAD lexemes ahead.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

# No answer is longer, and exact arithmetic on 10^999999999 would take all memory.
MAX_DIGITS = 60
MAX_EXPONENT = 300
MAX_AHEAD = 40

LEXEME = re.compile(r"[0-9]+|[^\W\d_]\w*|\\[A-Za-z]+|\n|[^\S\n]+|.", re.DOTALL)
# "5 x 4", and bold marks around a number, which would read as the power in "10**5".
TIMES = re.compile(r"(?<=[0-9])[^\S\n]?[xX][^\S\n]?(?=[$€£¥]?[0-9])")
BOLD = re.compile(r"(?<![0-9])\*\*|\*\*(?![0-9])")
CURRENCY_CODE = re.compile(r"\b(USD|EUR|GBP|INR|CAD|AUD|Rs)(?=[0-9])")
UNIT = re.compile(r"[^\W\d_]+|(?:[cdkm]?m|ft|in|mi|yd)[23]")
SPACED = ("\\,", "\\!", "\\;", "\\:", "\\ ", "~")

MINUS = {"-", "\u2212", "\u2013"}
CURRENCY = {"$", "€", "£", "¥", "₹"}
TIMES_MARKS = {"×", "·", "*", "\\times", "\\cdot"}
SCALES = {"hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9,
          "trillion": 10**12}  # fmt: skip
MONEY_SCALES = {"m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9}
FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac"}
# What makes another number of the number beside it.
FUNCTIONS = {"\\sqrt", "\\pi", "\\log", "\\ln", "\\exp", "\\sin", "\\cos", "\\tan", "\\binom", "\\infty", "√", "π", "∞"}
VARIABLES = {"x", "y", "z", "π"}
CLAUSE_WORDS = {"and", "as", "because", "but", "for", "given", "if", "since", "so", "when", "where", "which", "with"}
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


@dataclass(frozen=True)
class Number:
    """``value`` is what is written before a percent sign, not a hundredth of it."""

    value: Fraction
    percent: bool = False


class NumberReader:
    """The lexemes of a text, and a place among them."""

    def __init__(self, text: str) -> None:
        text = CURRENCY_CODE.sub(r"\1 ", TIMES.sub(" × ", BOLD.sub("", text)))
        for spaced in SPACED:
            text = text.replace(spaced, "\u202f")
        text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
        self.lexemes = LEXEME.findall(text)
        self.at = 0

    def look(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.lexemes[place] if 0 <= place < len(self.lexemes) else ""

    def skip(self, count: int = 1) -> None:
        self.at += count

    def past_blank(self, ahead: int = 0) -> int:
        """Past one blank, if there is one."""
        return ahead + 1 if is_blank(self.look(ahead)) else ahead

    def begins_number(self, ahead: int = 0) -> bool:
        lexeme = self.look(ahead)
        if lexeme == ".":
            return is_digits(self.look(ahead + 1)) and not joins(self.look(ahead - 1))
        return is_digits(lexeme) or lexeme in FRACTIONS or _vulgar(lexeme) is not None

    def number(self, *, currency: bool = False) -> Number | None:
        """Read the number that begins here; None where it is not understood whole."""
        currency = currency or self.look(-1) in CURRENCY
        number = self._quantity(currency=currency)
        joined = 0
        # "3-5" ends in five; "2024-05-06" is no number.
        while self.look() in MINUS and self._begins_range():
            while not self.begins_number():
                self.at += 1
            number = self._quantity(currency=currency)
            joined += 1
        return number if joined < 2 else None

    def _begins_range(self) -> bool:
        return self.begins_number(1) or (self.look(1) in CURRENCY and self.begins_number(2))

    def _quantity(self, *, currency: bool) -> Number | None:
        value = self._fraction()
        while self.look() == ":" and is_digits(self.look(1)):  # a time of day, or a ratio
            self.at += 2
            value = None
        value = self._scaled(value, currency=currency)
        percent = self._percent()
        unit = self.look()
        ahead = self.past_blank()
        if unit and unit[0].isalpha() and unit.lower() not in CLAUSE_WORDS:
            known = UNIT.fullmatch(unit) is not None and unit not in VARIABLES
            self.at += 1
            if not known:
                return None
        elif self.look(ahead) in FUNCTIONS:
            self.at += ahead + 1
            self.skip_argument()
            return None
        return None if value is None else Number(value, percent)

    def _fraction(self) -> Fraction | None:
        value = self._factor()
        for ahead in (self.past_blank(), 0):
            part = self.look(ahead)
            if (vulgar := _vulgar(part)) is not None:
                self.at += ahead + 1
                return None if value is None else value + vulgar
            if part in FRACTIONS and value is not None:
                self.at += ahead
                below = self._latex_fraction()
                return None if below is None else value + below
        if self.past_blank() and is_digits(self.look(1)) and self.look(2) == "/" and is_digits(self.look(3)):
            self.at += 1
            part_value = self._divided(self._literal())
            return None if value is None or part_value is None else value + part_value
        return self._divided(value)

    def _divided(self, value: Fraction | None) -> Fraction | None:
        divisions = 0
        while self.look(slash := self.past_blank()) == "/" and self.begins_number(self.past_blank(slash + 1)):
            self.at += self.past_blank(slash + 1)
            below = self._factor()
            value = None if value is None or not below else value / below
            divisions += 1
        return value if divisions < 2 else None  # "1/2/2020" is a date

    def _factor(self) -> Fraction | None:
        if self.look() in FRACTIONS:
            return self._latex_fraction()
        if (vulgar := _vulgar(self.look())) is not None:
            self.at += 1
            return vulgar
        value = self._exponent(self._literal())
        if self.look() == "^" or (self.look() == "*" and self.look(1) == "*"):
            self.at += 1 if self.look() == "^" else 2
            return self._power(value)
        if (raised := self.look().translate(SUPERSCRIPTS)) != self.look() and _is_integer(raised):
            self.at += 1
            return _raise(value, int(raised[:9]))
        times = self.past_blank()
        ten = self.past_blank(times + 1)
        if self.look(times) in TIMES_MARKS and self.look(ten) == "10" and self.look(ten + 1) == "^":
            self.at += ten + 2
            scale = self._power(Fraction(10))
            return None if value is None or scale is None else value * scale
        return value

    def _power(self, base: Fraction | None) -> Fraction | None:
        """Past the ``^``: an integer, alone or in braces; degrees leave the number as it is."""
        argument = self._argument()
        if argument == "\\circ":
            return base
        return _raise(base, int(argument)) if _is_integer(argument) and len(argument) <= 9 else None

    def _exponent(self, value: Fraction | None) -> Fraction | None:
        word = self.look()
        if word[:1] not in ("e", "E"):
            return value
        if is_digits(word[1:]):
            self.at += 1
            digits, sign = word[1:], 1
        elif len(word) == 1 and self.look(1) in ("-", "+") and is_digits(self.look(2)):
            digits, sign = self.look(2), -1 if self.look(1) == "-" else 1
            self.at += 3
        else:
            return value
        scale = _raise(Fraction(10), sign * int(digits)) if len(digits) <= 9 else None
        return None if value is None or scale is None else value * scale

    def _literal(self) -> Fraction | None:
        """Digits in groups with a decimal point, as English, Swiss, Indian or international writing groups them."""
        groups: list[str] = []
        separators: set[str] = set()
        if self.look() != ".":
            groups.append(self._take())
            spaced = self._spaced_groups(groups[0])
            for _ in range(spaced):
                self.at += 1
                groups.append(self._take())
                separators.add(" ")
            while self.look() in (",", "'", "\u2019", "_") and is_digits(self.look(1)):
                separators.add(self._take())
                groups.append(self._take())
        decimals = ""
        if self.look() == "." and is_digits(self.look(1)):
            self.at += 1
            decimals = self._take()
        whole = True
        while self.look() in (".", ",", "'", "\u2019", "_") and is_digits(self.look(1)):
            self.at += 2
            whole = False
        digits = "".join(groups)
        if not whole or len(digits) + len(decimals) > MAX_DIGITS or not _are_grouped(groups, separators):
            return None
        return Fraction(f"{digits or '0'}.{decimals or '0'}")

    def _spaced_groups(self, first: str) -> int:
        """How many groups of three digits follow between blanks. They are one number only if all of them fit."""
        count = 0
        if not 1 <= len(first) <= 3 or first[0] == "0":
            return 0
        while len(self.look(2 * count)) == 1 and is_blank(self.look(2 * count)):
            group = self.look(2 * count + 1)
            if not is_digits(group):
                break
            mixed = self.look(2 * count + 2) == "/"
            if len(group) != 3 or mixed or 2 * count > MAX_AHEAD:
                return 0
            count += 1
        return count

    def _scaled(self, value: Fraction | None, *, currency: bool) -> Fraction | None:
        factor = {"k": 1000, **(MONEY_SCALES if currency else {})}.get(self.look().lower())
        if factor is not None:
            self.at += 1
            return None if value is None else value * factor
        for _ in range(2):
            ahead = self.past_blank()
            factor = SCALES.get(self.look(ahead).lower())
            if factor is None:
                break
            self.at += ahead + 1
            value = None if value is None else value * factor
        return value

    def _percent(self) -> bool:
        ahead = self.past_blank()
        word = self.look(ahead).lower()
        if word in ("%", "percent"):
            self.at += ahead + 1
            return True
        if word == "per" and self.look(ahead + 1) == " " and self.look(ahead + 2).lower() == "cent":
            self.at += ahead + 3
            return True
        return False

    def _latex_fraction(self) -> Fraction | None:
        self.at += 1
        self.at += self.past_blank()
        digits = self.look()
        if is_digits(digits) and len(digits) >= 2:  # \frac34
            self.at += 1
            above, below, rest = digits[0], digits[1], digits[2:]
            if rest:
                return None
        else:
            above = self._argument()
            self.at += self.past_blank()
            below = self._argument()
        numerator, denominator = _simple(above), _simple(below)
        return None if numerator is None or not denominator else numerator / denominator

    def _argument(self) -> str:
        """What stands in the braces here, or the next lexeme with its sign. Too long or unclosed: nothing."""
        if self.look() != "{":
            signed = self.look() in ("-", "+")
            return self._take() + self._take() if signed else self._take()
        depth = 0
        for length in range(MAX_AHEAD):
            lexeme = self.look(length)
            depth += (lexeme == "{") - (lexeme == "}")
            if depth == 0:
                argument = "".join(self.lexemes[self.at + 1 : self.at + length]).strip()
                self.at += length + 1
                return argument
        self.at += 1
        return ""

    def skip_argument(self) -> None:
        if self.look() == "{" or is_digits(self.look()) or self.look() in ("-", "+"):
            self._argument()

    def _take(self) -> str:
        lexeme = self.look()
        self.at += 1
        return lexeme


def is_digits(lexeme: str) -> bool:
    return lexeme.isascii() and lexeme.isdigit()


def _is_integer(text: str) -> bool:
    return is_digits(text[1:] if text[:1] in ("-", "+", "\u2212") else text)


def is_blank(lexeme: str) -> bool:
    return lexeme != "\n" and lexeme.isspace()


def joins(lexeme: str) -> bool:
    """Whether what follows without a blank belongs to this: a word, a command, a closing bracket."""
    return lexeme[-1:].isalnum() or lexeme in (")", "}", "_") or (lexeme.endswith("_") and len(lexeme) > 1)


def _vulgar(lexeme: str) -> Fraction | None:
    if len(lexeme) != 1 or unicodedata.category(lexeme) != "No" or "VULGAR FRACTION" not in unicodedata.name(lexeme):
        return None
    return Fraction(unicodedata.numeric(lexeme)).limit_denominator(100)


def _are_grouped(groups: list[str], separators: set[str]) -> bool:
    """Whether groups of digits are one number: 1,234,567 or 12,34,567."""
    if len(groups) < 2:
        return True
    first, *middle, last = [len(group) for group in groups]
    western = 1 <= first <= 3 and all(size == 3 for size in [*middle, last])
    indian = separators == {","} and first <= 2 and last == 3 and all(size == 2 for size in middle)
    return len(separators) == 1 and (western or indian)


def _raise(base: Fraction | None, exponent: int) -> Fraction | None:
    if base is None or abs(exponent) > MAX_EXPONENT or (base == 0 and exponent < 0):
        return None
    digits = len(str(max(abs(base.numerator), base.denominator)))
    return base**exponent if (digits - 1) * abs(exponent) <= MAX_EXPONENT else None


def _simple(text: str) -> Fraction | None:
    """A number without anything around it, as in the braces of a fraction."""
    negative = text[:1] in MINUS
    reader = NumberReader(text[1:] if negative else text)
    if not reader.begins_number() or reader.look() in FRACTIONS:
        return None
    value = reader._literal()
    if value is None or reader.at < len(reader.lexemes):
        return None
    return -value if negative else value
