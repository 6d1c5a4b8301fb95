"""A JAX function as a graph of another format: OpenVINO's or ONNX's.

JAX traces the function with symbolic sizes, and each equation of its jaxpr becomes operations of the format. So every
head, option and layer has one definition, that in `models/` and `tasks/`. Three functions of the models are few
operations each, for which other engines have kernels: `layers.gelu`, the normalisation of `layers.LayerNorm`, and in
`attention.attend` the softmax with the product after it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from bert_jax.inference.graph_builder import Builder, Equation
from bert_jax.inference.graph_operations import CALLS, FUSED, OPERATIONS, SAME, Sizes, Value, elementwise


def graph_of(
    function: Callable[..., Any], parameters: object, inputs: Mapping[str, jax.ShapeDtypeStruct], builder: Builder
) -> Any:
    """Returns the graph of `function(parameters, inputs)`, which returns a dictionary of arrays, as `builder` makes it.

    The shapes of `inputs` may have symbolic sizes (`jax.export.symbolic_shape`): these axes of the graph are dynamic.
    Inputs that no output depends on are left out. Raises UserError for an operation of JAX that has no counterpart.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parameters)
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(shapes, dict(inputs))
    leaves, used, sizes = jax.tree.leaves_with_path(parameters), _used(closed.jaxpr), Sizes(builder)
    known: list[Value | None] = []
    for (path, leaf), variable in zip(leaves, closed.jaxpr.invars, strict=False):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        known.append(sizes.constant(leaf, name) if variable in used else None)
    for name, variable in zip(sorted(inputs), closed.jaxpr.invars[len(leaves) :], strict=True):
        known.append(sizes.input(name, inputs[name]) if variable in used else None)
    found = zip(sorted(outputs), _run(closed, known, sizes), strict=True)
    return builder.finish({name: (sizes.whole(value), outputs[name]) for name, value in found})


def _run(closed: ClosedJaxpr, known: Sequence[Value | None], sizes: Sizes) -> list[Value]:
    """Returns the results of a jaxpr for the values of its inputs; those that are not needed may be None."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, map(sizes.constant, closed.consts), strict=True))
    values |= dict(zip(jaxpr.invars, known, strict=True))
    used = _used(jaxpr)

    def read(atom: object) -> Any:
        return _literal(atom, sizes) if isinstance(atom, Literal) else values.get(atom)

    for equation in jaxpr.eqns:
        if not used.isdisjoint(equation.outvars):
            results = _translated(equation, [read(atom) for atom in equation.invars], sizes)
            values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _literal(atom: Any, sizes: Sizes) -> Value:
    return sizes.constant(np.asarray(atom.val, atom.aval.dtype))


def _translated(equation: Equation, operands: list[Any], sizes: Sizes) -> list[Value]:
    name, parameters = equation.primitive.name, equation.params
    shapes = [variable.aval.shape for variable in equation.outvars]
    if name in SAME:
        return [Value(x.node, shape, x.is_whole) for x, shape in zip(operands, shapes, strict=True)]
    if name in CALLS:
        inner = next(parameters[key] for key in ("jaxpr", "call_jaxpr") if key in parameters)
        closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
        # A function with a derivative of its own keeps its name only here.
        fused = FUSED.get(closed.jaxpr.debug_info.func_name.partition(" ")[0])
        if fused and (node := fused(sizes, closed.jaxpr, *operands)):
            return [Value(node, shapes[0])]
        return _run(closed, operands, sizes)
    if name not in OPERATIONS:
        return [elementwise(sizes, equation, operands)]
    found = OPERATIONS[name](sizes, equation, *operands)
    if isinstance(found, list):
        return found
    return [found if isinstance(found, Value) else Value(found, shapes[0])]


def _used(jaxpr: Jaxpr) -> set[Any]:
    """Returns the variables that the results depend on."""
    used = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    for equation in reversed(jaxpr.eqns):
        if not used.isdisjoint(equation.outvars):
            used.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return used
