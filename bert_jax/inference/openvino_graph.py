"""A JAX function as a graph of OpenVINO's operations.

JAX traces the function with symbolic sizes, and each equation of its jaxpr becomes operations of opset 15. So every
head, option and layer that prediction needs has one definition, that in `models/` and `tasks/`. Three functions of the
models are one operation each, for which OpenVINO has kernels: `layers.gelu`, the normalisation of `layers.LayerNorm`,
and in `attention.attend` the softmax with the products before and after it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import openvino as ov
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from openvino import opset15 as ops

from bert_jax.config import UserError
from bert_jax.inference.openvino_operations import (
    CALLS,
    ELEMENTWISE,
    FUSED,
    OPERATIONS,
    SAME,
    Sizes,
    Value,
    constant,
    elementwise,
)


def graph_of(function: Callable[..., Any], parameters: Any, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> ov.Model:
    """Returns the graph of `function(parameters, inputs)`, which returns a dictionary of arrays.

    The shapes of `inputs` may have symbolic sizes (`jax.export.symbolic_shape`): these axes of the graph are dynamic.
    Inputs that no output depends on are left out. Raises UserError for an operation of JAX that has no counterpart.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parameters)
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(shapes, dict(inputs))
    leaves, names, used = jax.tree.leaves(parameters), sorted(inputs), _used(closed.jaxpr)
    sizes, nodes, known = Sizes(), [], []
    for name, variable in zip([*([None] * len(leaves)), *names], closed.jaxpr.invars, strict=True):
        if variable not in used:
            known.append(None)
        elif name is None:
            known.append(constant(leaves[len(known)]))
        else:
            nodes.append(_parameter(name, inputs[name]))
            sizes.learn(nodes[-1], inputs[name].shape)
            known.append(Value(nodes[-1].output(0), inputs[name].shape))
    results = []
    for name, value in zip(sorted(outputs), _run(closed, known, sizes), strict=True):
        results.append(ops.result(sizes.whole(value)))
        results[-1].output(0).get_tensor().set_names({name})
    model: Any = ov.Model  # whose declared types contradict each other
    return model(results, nodes, "bert_jax")


def _parameter(name: str, like: jax.ShapeDtypeStruct) -> Any:
    shape = [size if isinstance(size, int) else -1 for size in like.shape]
    node = ops.parameter(shape, np.dtype(like.dtype).type, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def _run(closed: ClosedJaxpr, known: Sequence[Value | None], sizes: Sizes) -> list[Value]:
    """Returns the results of a jaxpr for the values of its inputs; those that are not needed may be None."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, map(constant, closed.consts), strict=True))
    values |= dict(zip(jaxpr.invars, known, strict=True))
    used = _used(jaxpr)

    def read(atom: Any) -> Any:
        return _literal(atom) if isinstance(atom, Literal) else values.get(atom)

    for equation in jaxpr.eqns:
        if not used.isdisjoint(equation.outvars):
            results = _translated(equation, [read(atom) for atom in equation.invars], sizes)
            values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _literal(atom: Any) -> Value:
    return constant(np.asarray(atom.val, atom.aval.dtype))


def _translated(equation: Any, operands: list[Any], sizes: Sizes) -> list[Value]:
    name, parameters = equation.primitive.name, equation.params
    shapes = [variable.aval.shape for variable in equation.outvars]
    if name in SAME:
        return [Value(x.node, shape, x.is_whole) for x, shape in zip(operands, shapes, strict=True)]
    if name in ELEMENTWISE:
        return [elementwise(equation, operands)]
    if name in CALLS:
        inner = next(parameters[key] for key in ("jaxpr", "call_jaxpr") if key in parameters)
        closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
        # A function with a derivative of its own keeps its name only here.
        fused = FUSED.get(closed.jaxpr.debug_info.func_name.partition(" ")[0])
        if fused and (node := fused(sizes, closed.jaxpr, *operands)):
            return [Value(node.output(0), shapes[0])]
        return _run(closed, operands, sizes)
    if name not in OPERATIONS:
        raise UserError(
            f"predict.backend=openvino has no counterpart of JAX's {name} operation, which this model needs; "
            "set predict.backend=jax"
        )
    found = OPERATIONS[name](sizes, equation, *operands)
    if isinstance(found, list):
        return found
    return [found if isinstance(found, Value) else Value(found.output(0), shapes[0])]


def _used(jaxpr: Jaxpr) -> set[Any]:
    """Returns the variables that the results depend on."""
    used = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    for equation in reversed(jaxpr.eqns):
        if not used.isdisjoint(equation.outvars):
            used.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return used
