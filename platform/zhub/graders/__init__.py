"""Graders: plain functions from sampled answers and their rows to rewards, in one table by their type.

The wire form is OpenAI's grader object, with four types of our own; see ``zhub.graders.types``.
"""

from zhub.graders.grading import combine, grade, grade_all
from zhub.graders.parsing import GraderJson, parse_grader
from zhub.graders.samples import Grade, GradingTools, Sample
from zhub.graders.templates import check_templates
from zhub.graders.types import (
    CodeTestsGrader,
    Grader,
    JsonSchemaGrader,
    MultiGrader,
    MultipleChoiceGrader,
    NumericGrader,
    PythonGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
    judge_models,
    needs_sandbox,
)

__all__ = [
    "CodeTestsGrader",
    "Grade",
    "Grader",
    "GraderJson",
    "GradingTools",
    "JsonSchemaGrader",
    "MultiGrader",
    "MultipleChoiceGrader",
    "NumericGrader",
    "PythonGrader",
    "Sample",
    "ScoreModelGrader",
    "StringCheckGrader",
    "TextSimilarityGrader",
    "check_templates",
    "combine",
    "grade",
    "grade_all",
    "judge_models",
    "needs_sandbox",
    "parse_grader",
]
