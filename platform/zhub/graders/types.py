"""What a grader is on the wire: OpenAI's objects where that dialect has them, and four of ours.

The dialect's: ``string_check``, ``text_similarity``, ``python``, ``score_model``, ``multi``. Ours: ``numeric``,
``multiple_choice``, ``json_schema``, ``code_tests``. Fields called ``input``, ``reference``, ``tests``, ``setup`` and
``entry_point`` are templates: see ``zhub.graders.templates``.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from zhub.graders import formula

ANSWER = "{{sample.output_text}}"
MAX_SOURCE_BYTES = 256 << 10  # the limit of the hosted dialect's python grader
MAX_TIMEOUT_S = 120.0
# pydantic's context for a grader that was checked before it was stored. Python's reader, which can take for ever, does
# not see its source and its formula again.
STORED = "stored"

Metric = Literal[
    "fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l", "cosine", "meteor"
]
UNSUPPORTED_METRICS = {
    "cosine": "it needs an embedding model, and zhub serves none",
    "meteor": "it needs the WordNet database, which is not part of zhub",
}


class _Grader(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=200)]


class StringCheckGrader(_Grader):
    """1 when ``operation`` holds between the filled-in ``input`` and the filled-in ``reference``, else 0.

    ``eq`` and ``ne`` compare exactly; ``like`` asks whether the input contains the reference,
    ``ilike`` the same without regard to case.
    """

    type: Literal["string_check"]
    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarityGrader(_Grader):
    """How alike input and reference are, in [0, 1]."""

    type: Literal["text_similarity"]
    input: str
    reference: str
    evaluation_metric: Metric

    @field_validator("evaluation_metric")
    @classmethod
    def _has_a_library(cls, metric: Metric) -> Metric:
        if metric in UNSUPPORTED_METRICS:
            have = ", ".join(sorted(set(Metric.__args__) - set(UNSUPPORTED_METRICS)))  # type: ignore[attr-defined]
            raise ValueError(f"'{metric}' is not supported: {UNSUPPORTED_METRICS[metric]}. Use one of {have}")
        return metric


class NumericGrader(_Grader):
    """1 when the input's final number is the reference's, within the greater of the two tolerances; else 0.

    ``rel_tol`` is a share of the reference.
    """

    type: Literal["numeric"]
    input: str = ANSWER
    reference: str
    abs_tol: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-9
    rel_tol: Annotated[float, Field(ge=0, le=1)] = 0.0


class MultipleChoiceGrader(_Grader):
    """1 when the input chooses the option that the reference names, else 0.

    Options are ``n_choices`` letters from A. ``reference_base`` says what a number in the reference counts from:
    with 1, "1" is A; with 0, "0" is A.
    """

    type: Literal["multiple_choice"]
    input: str = ANSWER
    reference: str
    n_choices: Annotated[int, Field(ge=2, le=26)] = 4
    reference_base: Literal[0, 1] = 1


class JsonSchemaGrader(_Grader):
    """1 when the input is JSON that fits ``json_schema``; with ``reference``, the share of ``fields`` that agree.

    Without ``fields``, all of the reference's top-level fields are compared. JSON that does not fit is worth 0.
    """

    type: Literal["json_schema"]
    input: str = ANSWER
    json_schema: dict[str, Any]
    reference: str | None = None
    fields: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _fields_have_a_reference(self) -> "JsonSchemaGrader":
        if self.fields is not None and self.reference is None:
            raise ValueError("'fields' are compared with 'reference': give one, or leave 'fields' out")
        return self


class PythonGrader(_Grader):
    """The reward is what ``grade(sample, item)`` of ``source`` returns, run in the sandbox.

    ``sample`` has ``output_text`` and ``output_json`` (None where the text is no JSON), ``item`` the row's columns.
    """

    type: Literal["python"]
    source: str
    image_tag: None = None
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] = 5.0

    @field_validator("source")
    @classmethod
    def _defines_grade(cls, source: str, info: ValidationInfo) -> str:
        if info.context == STORED:
            return source
        if len(source.encode(errors="replace")) > MAX_SOURCE_BYTES:
            raise ValueError(f"the source is longer than {MAX_SOURCE_BYTES >> 10} KiB")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
            line = f"line {exc.lineno}: {exc.msg}" if isinstance(exc, SyntaxError) else str(exc)
            raise ValueError(f"the source is not Python: {line}") from exc
        defined = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "grade"]
        if not defined:
            raise ValueError("the source must define a function grade(sample, item) that returns a number")
        given = defined[-1].args
        required = len(given.posonlyargs) + len(given.args) - len(given.defaults)
        most = 2 if given.vararg else len(given.posonlyargs) + len(given.args)
        if required > 2 or most < 2 or any(default is None for default in given.kw_defaults):
            raise ValueError(
                f"line {defined[-1].lineno}: grade must take two arguments, grade(sample, item); "
                f"it takes ({ast.unparse(given)})"
            )
        return source


class CodeTestsGrader(_Grader):
    """1 when the Python in the input passes its tests in the sandbox; with ``partial_credit``, the share passed.

    ``tests`` names a column with a list of asserts (MBPP), or with a source that defines ``check(candidate)``, where
    ``entry_point`` names the function to be checked (HumanEval). ``setup`` runs after the answer, before the tests.
    """

    type: Literal["code_tests"]
    input: str = ANSWER
    tests: str
    setup: str | None = None
    entry_point: str | None = None
    partial_credit: bool = False
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] = 3.0


class JudgeMessage(BaseModel):
    """One message to the judge; its content is a template."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["user", "assistant", "system", "developer"]
    content: str
    type: Literal["message"] | None = None


class JudgeSampling(BaseModel):
    """How the judge's answer is drawn. The names are the dialect's, ``max_completions_tokens`` included."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    max_completions_tokens: Annotated[int, Field(ge=1, le=8192)] = 256


class ScoreModelGrader(_Grader):
    """The reward is the number that ``model``, a base model, answers to ``input``; within ``range``.

    The judge may answer a bare number, or JSON with ``result`` or ``score``.
    """

    type: Literal["score_model"]
    model: str
    input: Annotated[list[JudgeMessage], Field(min_length=1)]
    range: tuple[float, float] = (0.0, 1.0)
    sampling_params: JudgeSampling = JudgeSampling()

    @field_validator("range")
    @classmethod
    def _ascends(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"the range must ascend, got [{value[0]}, {value[1]}]")
        return value


SubGrader = Annotated[
    StringCheckGrader
    | TextSimilarityGrader
    | NumericGrader
    | MultipleChoiceGrader
    | JsonSchemaGrader
    | PythonGrader
    | CodeTestsGrader
    | ScoreModelGrader,
    Field(discriminator="type"),
]


class MultiGrader(_Grader):
    """The reward is the formula ``calculate_output`` over the rewards of ``graders``, each by its key.

    The dialect's clients send one grader, a list, or an object; one and a list are keyed by the graders' names.
    """

    type: Literal["multi"]
    graders: Annotated[dict[str, SubGrader], Field(min_length=1, max_length=20)]
    calculate_output: Annotated[str, Field(max_length=2000)]

    @field_validator("graders", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("type"), str):
            given = [given]
        if not isinstance(given, list):
            return given
        names = [grader.get("name") if isinstance(grader, Mapping) else None for grader in given]
        if len(set(names)) < len(names):
            raise ValueError("the graders of a list need names that differ")
        return dict(zip(names, given, strict=True))

    @model_validator(mode="after")
    def _formula_can_be_computed(self, info: ValidationInfo) -> "MultiGrader":
        if info.context != STORED:
            formula.check(self.calculate_output, self.graders)
        return self


Grader = Annotated[
    StringCheckGrader
    | TextSimilarityGrader
    | NumericGrader
    | MultipleChoiceGrader
    | JsonSchemaGrader
    | PythonGrader
    | CodeTestsGrader
    | ScoreModelGrader
    | MultiGrader,
    Field(discriminator="type"),
]
TYPES = (
    "string_check",
    "text_similarity",
    "numeric",
    "multiple_choice",
    "json_schema",
    "python",
    "code_tests",
    "score_model",
    "multi",
)


def parts(grader: Grader) -> dict[str, SubGrader]:
    """The graders that a ``multi`` consists of, by their keys; none for any other."""
    return grader.graders if isinstance(grader, MultiGrader) else {}


def leaves(grader: Grader, param: str) -> Iterator[tuple[str, Grader]]:
    """The grader itself, or the parts of a ``multi``; each with its path in a request where the grader is ``param``."""
    if not isinstance(grader, MultiGrader):
        yield param, grader
    for key, part in parts(grader).items():
        yield f"{param}.graders.{key}", part


def needs_sandbox(grader: Grader) -> bool:
    return isinstance(grader, PythonGrader | CodeTestsGrader) or any(map(needs_sandbox, parts(grader).values()))


def judge_models(grader: Grader) -> list[str]:
    """The models that are asked to judge, each once, in order."""
    models = [grader.model] if isinstance(grader, ScoreModelGrader) else []
    for part in parts(grader).values():
        models += judge_models(part)
    return list(dict.fromkeys(models))
