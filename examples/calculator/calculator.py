"""The calculator: evaluates arithmetic that a model wrote; runs in a sandbox, a call a line.

Only numbers and operators are evaluated, so no text can do harm but by its size, and the sandbox
bounds that.
"""

import ast
import json
import operator
import sys

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def value_of(node: ast.AST) -> int:
    """The value of an expression; raises ValueError for what is no arithmetic."""
    if isinstance(node, ast.Expression):
        return value_of(node.body)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
    raise ValueError(f"{type(node).__name__} is no arithmetic")


def answer(text: str) -> str:
    """The value as text, or `error`."""
    try:
        return str(value_of(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError, ArithmeticError, RecursionError):
        return "error"


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
