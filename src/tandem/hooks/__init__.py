"""What users' hooks import, and how hooks are found and checked."""

from tandem.hooks.asking import generate, post, tokenizer
from tandem.hooks.load import Hook, Spec, load
from tandem.hooks.view import DialectSample as Sample
from tandem.hooks.view import DialectStatus as Status
from tandem.hooks.view import DynamicFilterOutput, RolloutFnEvalOutput, RolloutFnTrainOutput

__all__ = [
    "DynamicFilterOutput",
    "Hook",
    "RolloutFnEvalOutput",
    "RolloutFnTrainOutput",
    "Sample",
    "Spec",
    "Status",
    "generate",
    "load",
    "post",
    "tokenizer",
]
