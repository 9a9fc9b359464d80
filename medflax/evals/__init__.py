"""Evaluators, named in `config.evals`."""

from medflax.evals.base import EvalContext, Evaluator
from medflax.evals.fewshot_vqa import FewshotVQA
from medflax.evals.perplexity import Perplexity

EVALUATORS: dict[str, type] = {"fewshot_vqa": FewshotVQA, "perplexity": Perplexity}

__all__ = ["EVALUATORS", "EvalContext", "Evaluator"]
