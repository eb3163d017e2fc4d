"""The numbers of a text, and the marks between them that say how they belong together: operators, ``=``, clauses."""

from typing import Literal

from zhub.graders.number_reader import (
    CLAUSE_WORDS,
    CURRENCY,
    FUNCTIONS,
    MINUS,
    Number,
    NumberReader,
    is_blank,
    is_digits,
    joins,
)

OPERATORS = {"+", "-", "\u2212", "\u2013", "*", "×", "·", "/", "÷", "\\times", "\\cdot", "\\div", "\\pm"}
EQUALS = {"=", "≈", "≅", "≃", "→", "⇒", "\\approx", "\\equiv", "\\to", "\\implies", "\\Rightarrow", "equals"}
SPOKEN_MINUS = ("negative", "minus")
SPOKEN_FUNCTIONS = {"sqrt", "log", "ln", "exp", "sin", "cos", "tan", "abs", "factorial"}
CLAUSE_ENDS = {",", ";", ".", "!", "?", ":", "\n"}

Mark = Literal["operator", "equals", "end", "word", "unreadable"]
Token = Number | Mark


def tokens_of(text: str) -> list[Token]:
    """Read a text in one pass. A number that is not understood whole is "unreadable"."""
    return _Tokens(text).all()


class _Tokens:
    def __init__(self, text: str) -> None:
        self.reader = NumberReader(text)
        self.found: list[Token] = []

    def all(self) -> list[Token]:
        while self.reader.at < len(self.reader.lexemes):
            before = self.reader.at
            self._token()
            assert self.reader.at > before
        return self.found

    def _token(self) -> None:
        reader = self.reader
        lexeme = reader.look()
        if reader.begins_number():
            self._found_number(reader.number())
        elif lexeme in EQUALS:
            self._emit("equals")
        elif lexeme in MINUS:
            self._hyphen()
        elif lexeme in OPERATORS:
            self._emit("operator") if self._joins_operands() else reader.skip()
        elif lexeme.lower() in SPOKEN_MINUS and self._begins_money(1) is not None:
            self._emit("operator") if self._ends_operand() else self._negative()
        elif lexeme in ("^", "_") and joins(reader.look(-1)):
            reader.skip()  # of a unit or a name: m^2, \log_2
            reader.skip_argument()
        elif lexeme in FUNCTIONS:
            reader.skip()
            reader.skip_argument()
            self.found.append("unreadable")
        elif lexeme == "." and is_digits(reader.look(-1)[-1:]) and is_digits(reader.look(1)):
            reader.skip(2)  # of a name: v1.2
        elif lexeme in CLAUSE_ENDS or lexeme.lower() in CLAUSE_WORDS:
            self._emit("end")
        elif lexeme == "(":
            self._emit("operator" if self._applies() and reader.begins_number(1) else "end")
        elif lexeme[0].isalpha():
            self._emit("word")
            if lexeme.endswith("_") and reader.look() == "{":
                reader.skip_argument()
        else:
            reader.skip()

    def _applies(self) -> bool:
        """Whether the bracket here multiplies a number, as in 2(3+4), or follows a function, as in sqrt(49)."""
        before = self.reader.look(-1)
        return is_digits(before) or before.lower() in SPOKEN_FUNCTIONS

    def _emit(self, token: Mark) -> None:
        self.found.append(token)
        self.reader.skip()

    def _found_number(self, number: Number | None) -> None:
        self.found.append("unreadable" if number is None else number)

    def _ends_operand(self) -> bool:
        """Whether the last token is a number, or the unit of one."""
        return _is_number(self.found[-1:]) or (self.found[-1:] == ["word"] and _is_number(self.found[-2:-1]))

    def _hyphen(self) -> None:
        """A minus, the sign of a number, or what joins two words."""
        reader = self.reader
        before = reader.look(-2) if is_blank(reader.look(-1)) else reader.look(-1)
        variable = len(before) == 1 and before.isalpha() and self.found[-1:] == ["word"]
        if self._begins_money(1) is None and not variable:
            reader.skip()
        elif variable or self._ends_operand() or before in (")", "}"):
            self._emit("operator")
        elif joins(reader.look(-1)) or reader.look(-1) in (".", ",", "%", "]"):
            reader.skip()
        else:
            self._negative()

    def _negative(self) -> None:
        """Read the number behind a minus, and behind a sign of currency: -$5, negative 5."""
        start = self._begins_money(1)
        assert start is not None
        twice = any(self.reader.look(ahead) in MINUS for ahead in range(1, start))
        self.reader.skip(start)
        number = self.reader.number(currency=True)
        self._found_number(number if number is None or twice else Number(-number.value, number.percent))

    def _joins_operands(self) -> bool:
        """Whether the operator here stands between two numbers, units, or variables of one letter."""
        after = self.reader.look(self.reader.past_blank(1))
        # A letter behind a slash is a unit: km / h.
        variable = len(after) == 1 and after.isalpha() and self.reader.look() != "/"
        begins = self._begins_money(1) is not None or variable or after == "(" or after in FUNCTIONS
        return begins and (_is_number(self.found[-1:]) or self.found[-1:] == ["word"])

    def _begins_money(self, ahead: int) -> int | None:
        """Where the number begins that may stand behind a sign and a sign of currency; None where there is none."""
        for _ in range(2):
            ahead = self.reader.past_blank(ahead)
            if self.reader.begins_number(ahead):
                return ahead
            if self.reader.look(ahead) not in CURRENCY:
                return None
            ahead += 1
            if self.reader.look(ahead) in MINUS:
                ahead += 1
        return ahead if self.reader.begins_number(ahead) else None


def _is_number(tokens: list[Token]) -> bool:
    return any(isinstance(token, Number) or token == "unreadable" for token in tokens)
