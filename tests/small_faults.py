"""The small faults that a Python file can have: one change of an expression or a statement each."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Swapped in both directions.
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Mult: ast.Div,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.Gt: ast.GtE,
    ast.Eq: ast.NotEq,
    ast.In: ast.NotIn,
    ast.Is: ast.IsNot,
    ast.And: ast.Or,
    ast.BitAnd: ast.BitOr,
}
_OPERATORS |= {b: a for a, b in _OPERATORS.items() if b is not ast.Mult}
_METHODS = {"min": "max", "any": "all", "floor": "ceil", "argmax": "argmin", "sum": "mean"}
_METHODS |= {b: a for a, b in _METHODS.items()}
_METHODS |= {"sorted": "list", "eval": "train", "abs": "float", "strip": "lower"}


# Arguments of how something looks or is checked, and calls that move to a device.
_LOOKS = frozenset(
    "strict style caption title justify highlight help metavar stacklevel va ha fontsize fontfamily"
    " transform color alpha linewidth".split()
)
_PLACES = frozenset("cpu cuda to detach contiguous".split())


@dataclass(frozen=True)
class Fault:
    """A change of one expression or statement.

    Attributes:
        file: from the root of the repository.
        line: its number, for a person to look up.
        last: that of the last line of the smallest statement around it.
        was, now: that statement, before and after.
    """

    file: str
    line: int
    last: int
    was: str
    now: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What stays when lines move."""
        return self.file, self.was, self.now


# Changes


def changes(node: ast.AST) -> Iterator[ast.AST | None]:
    """What can stand in a node's place; None where a statement can be left out."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        if not isinstance(node.left, ast.Constant) or isinstance(node.left.value, int | float):
            yield _with(node, op=_OPERATORS[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=_OPERATORS[type(node.op)]())
        yield node.values[0]
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _OPERATORS:
        yield _with(node, ops=[_OPERATORS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        if type(node.value) is bool:
            yield ast.Constant(not node.value)
        else:
            yield ast.Constant(node.value + 1)
            if node.value:
                yield ast.Constant(type(node.value)(0))
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Slice):
        if node.lower is not None:
            yield _with(node, lower=None)
        if node.upper is not None:
            yield _with(node, upper=None)
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        yield node.value
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield _with(node, ifs=[])
    elif isinstance(node, ast.If) and not node.orelse and isinstance(node.body[0], ast.Assign):
        yield None
    elif isinstance(node, ast.AugAssign):
        yield None
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield None


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    for index, keyword in enumerate(node.keywords):
        if keyword.arg not in _LOOKS:
            yield _with(node, keywords=node.keywords[:index] + node.keywords[index + 1 :])
    if len(node.args) == 2 and not any(isinstance(a, ast.Starred) for a in node.args):
        yield _with(node, args=node.args[::-1])
    if isinstance(node.func, ast.Name) and node.func.id in _METHODS:
        yield _with(node, func=ast.Name(_METHODS[node.func.id], ast.Load()))
    if isinstance(node.func, ast.Attribute):
        if node.func.attr in _METHODS:
            yield _with(node, func=_with(node.func, attr=_METHODS[node.func.attr]))
        if not node.keywords and len(node.args) <= 1 and node.func.attr not in _PLACES:
            yield node.func.value  # x.masked(m) -> x


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _is_message(node: ast.AST) -> bool:
    """What is raised, annotated, how something looks, or a check of lengths that are equal."""
    if isinstance(node, ast.keyword):
        return node.arg in _LOOKS
    return isinstance(node, ast.Raise | ast.JoinedStr | ast.arguments | ast.AnnAssign)


def faults_of(file: Path) -> list[tuple[Fault, Callable[[], str]]]:
    """Every fault of a Python file, with what gives the file's text that has it."""
    text = file.read_text()
    found = []

    def visit(node: ast.AST, statement: ast.stmt | None, holder: tuple | None) -> None:
        if _is_message(node):
            return
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            statement = node
        if holder is not None and statement is not None:
            for new in changes(node):
                found.append(_changed(file, tree, holder, node, new, statement))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "format_spec"):
                continue
            if isinstance(value, ast.AST):
                visit(value, statement, (node, name, None))
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, ast.AST):
                        visit(item, statement, (node, name, index))

    tree = ast.parse(text)
    visit(tree, None, None)
    return [pair for pair in found if pair is not None]


def _changed(
    file: Path, tree: ast.AST, holder, node, new, statement
) -> tuple[Fault, Callable[[], str]] | None:
    """The fault and what gives the whole text, by a change of the tree that is taken back."""
    parent, name, index = holder
    if new is None:
        new = ast.Pass()

    def put(value: ast.AST) -> None:
        if index is None:
            setattr(parent, name, value)
        else:
            getattr(parent, name)[index] = value

    def with_it(text: Callable[[], str]) -> str:
        put(new)
        try:
            return text()
        finally:
            put(node)

    def whole() -> str:
        return with_it(lambda: ast.unparse(ast.fix_missing_locations(tree)))

    was = _line(statement)
    now = "pass" if statement is node else with_it(lambda: _line(statement))
    if now == was:
        return None
    line = getattr(node, "lineno", statement.lineno)
    last = line if hasattr(statement, "body") else statement.end_lineno
    return Fault(file.relative_to(ROOT).as_posix(), line, last, was, now), whole


def _line(statement: ast.stmt) -> str:
    """A statement in one line; of a compound one its head."""
    lines = ast.unparse(statement).splitlines()
    return lines[0] if hasattr(statement, "body") else " ".join(line.strip() for line in lines)
