"""What a node is, read from what the user gave: how to call it, and where its commands may go."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal

from weavegraph.errors import GraphError
from weavegraph.graph._compiled import CompiledGraph, NodePlan, Retry
from weavegraph.state import Command, NodePartial, Send

__all__ = ["answers_of", "check_router", "names_of", "plan_of"]

_ROUTING = frozenset({"Command", "Send", "NodePartial", "FrontierCommand"})
_PLAIN = frozenset({"None", "Any", "object", "bool", "int", "float", "str", "bytes", "dict", "list", "Mapping"})
"""What says nothing of where commands go, if a return type says no more."""
_WORDS = re.compile(r"\w+").findall


def plan_of(
    name: str, node: Any, *, retry: Retry | int | None, timeout: float | None, goto: tuple[str, ...] | None
) -> NodePlan:
    """The plan of ``node``: a function, an object with ``run``, or a compiled app.

    Raises:
        GraphError: it is none of these, or takes other arguments than ``(state)`` or ``(state, ctx)``.
    """
    graph = getattr(node, "graph", None)
    if isinstance(graph, CompiledGraph):
        plan = NodePlan(name, node, "graph", True, graph=graph)
    else:
        call = _callable(name, node)
        is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004
        plan = NodePlan(name, call, "async" if is_async else "sync", _takes_context(name, call))
        plan.goto = _gotos(call) if goto is None else goto
    if type(retry) is int and retry >= 1:
        retry = Retry(tries=retry)
    if retry is not None and not isinstance(retry, Retry):
        raise GraphError(f"node {name!r}: retry={retry!r}: give a number of tries from 1, or Retry(tries=…)")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0):
        raise GraphError(f"node {name!r}: timeout={timeout!r}: give seconds, more than 0")
    plan.retry, plan.timeout = retry, timeout
    return plan


def answers_of(router: Callable[..., Any]) -> tuple[str, ...] | None:
    """What a router may answer, if its return type says so: ``-> Literal["write", "review"]``."""
    return _literals(_returns(router))


def names_of(who: str, to: Any) -> tuple[str, ...]:
    """What ``to=`` names: one node or several, each once."""
    if isinstance(to, str):
        return (to,)
    names = tuple(to) if isinstance(to, Iterable) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise GraphError(f"{who}: to={to!r}: give the name of a node, or a list of names")
    return tuple(dict.fromkeys(names))


def check_router(source: str, router: Callable[..., Any]) -> None:
    """Raise ``GraphError`` if ``router(state)`` cannot be called."""
    try:
        signature = inspect.signature(router)
    except (TypeError, ValueError):
        return  # a built-in without a signature
    try:
        signature.bind(None)
    except TypeError:
        raise GraphError(f"the router after {source!r} takes {signature}; it is called with (state)") from None


def _callable(name: str, node: Any) -> Callable[..., Any]:
    if inspect.isclass(node):
        raise GraphError(f"node {name!r} is the class {node.__name__}; give an instance of it")
    if callable(node):
        return node  # type: ignore[no-any-return]
    run = getattr(node, "run", None)
    if callable(run):
        return run  # type: ignore[no-any-return]
    raise GraphError(f"node {name!r} is a {type(node).__name__}; give a function or an object with run(state, ctx)")


def _takes_context(name: str, call: Callable[..., Any]) -> bool:
    if type(call) is types.FunctionType and not call.__dict__:  # nothing decorated: 1 µs instead of 30
        code, more = call.__code__, bool(call.__code__.co_flags & inspect.CO_VARARGS)
        least = code.co_argcount - len(call.__defaults__ or ())
        if least <= 2 and (code.co_argcount or more) and code.co_kwonlyargcount == len(call.__kwdefaults__ or ()):
            return code.co_argcount >= 2 or more
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return False  # a built-in without a signature
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(needed) > 2 or (not positional and not more) or keywords:
        raise GraphError(f"node {name!r} takes {inspect.signature(call)}; it is called with (state) or (state, ctx)")
    return len(positional) >= 2 or more


def _gotos(call: Callable[..., Any]) -> tuple[str, ...] | None:
    """Nodes that its commands may name: by its return type, else none, or any if its code names a command."""
    returns = _returns(call)
    if returns is not None:
        found: list[str] = []
        for part in _parts(returns):
            if (typing.get_origin(part) or part) is Command:
                literals = _literals(typing.get_args(part)[0]) if typing.get_args(part) else None
                if literals is None:
                    return None
                found += literals
            elif part in (NodePartial, Send) or _holds_send(part):
                return None
        if found:
            return tuple(dict.fromkeys(found))
    function = inspect.unwrap(call) if callable(call) else call
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None) or getattr(getattr(function, "__call__", None), "__code__", None)  # noqa: B004
    return None if isinstance(code, types.CodeType) and _names_routing(code) else ()


def _names_routing(code: types.CodeType) -> bool:
    if _ROUTING & {*code.co_names, *code.co_freevars}:
        return True
    return any(isinstance(constant, types.CodeType) and _names_routing(constant) for constant in code.co_consts)


def _returns(call: Callable[..., Any]) -> Any:
    """The return type; ``None`` if there is none, or none that can be known when the program runs."""
    function = call if inspect.isroutine(call) else getattr(call, "__call__", call)  # noqa: B004
    try:
        hint = function.__annotations__["return"]
        if isinstance(hint, str) and _PLAIN.issuperset(_WORDS(hint)):  # no need to know: 3 µs instead of 40
            return None
        scope = getattr(inspect.unwrap(function), "__globals__", {})
        alone = types.SimpleNamespace(__annotations__={"return": hint}, __globals__=scope)
        alone.__type_params__ = getattr(function, "__type_params__", ())
        return typing.get_type_hints(alone).get("return")
    except Exception:  # names that exist for type checkers only
        return None


def _parts(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(part for each in typing.get_args(hint) for part in _parts(each))
    return (hint,)


def _holds_send(hint: Any) -> bool:
    return any(part is Send for argument in typing.get_args(hint) for part in _parts(argument))


def _literals(hint: Any) -> tuple[str, ...] | None:
    """The strings of ``Literal[…]``, also in ``list[Literal[…]]``; ``None`` if ``hint`` says something else."""
    found: list[str] = []
    for part in _parts(hint):
        if typing.get_origin(part) in (list, tuple, set, frozenset):
            inner = _literals(typing.get_args(part)[0])
            if inner is None:
                return None
            found += inner
        elif typing.get_origin(part) is Literal and all(isinstance(each, str) for each in typing.get_args(part)):
            found += typing.get_args(part)
        elif part is not type(None):
            return None
    return tuple(dict.fromkeys(found)) or None
