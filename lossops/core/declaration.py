"""The decorator of public losses, and the base class of their modules.

Both define a function from source, as ``dataclasses`` does. A wrapper with ``*args`` would take a
third of the time of a small loss, and torch.compile, which counts compilations per code object,
would take all losses for one function.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable

from torch.overrides import has_torch_function_variadic

from lossops.core.arguments import Range
from lossops.core.overrides import handle, overrides_are_enabled


def public(**ranges: Range):
    """Declares a public loss: validates its hyperparameters, and lets tensor subclasses and modes
    override the call.

    Args:
        **ranges: the values that each hyperparameter may have. A call converts them to floats;
            defaults are not validated. The loss keeps them as its attribute ``ranges``, from which
            the tests derive calls that must raise.
    """

    def decorate(function: Callable) -> Callable:
        parameters = inspect.signature(function).parameters
        tensors = [name for name, p in parameters.items() if "Tensor" in str(p.annotation)]
        required = [name for name, p in parameters.items() if p.default is p.empty]
        options = [name for name in parameters if name not in required]
        scope = {
            "function": function, "handle": handle, "overrides_are_enabled": overrides_are_enabled,
            "has_torch_function": has_torch_function_variadic,
        }  # fmt: skip
        lines = [
            f"if has_torch_function({', '.join(tensors)}) and overrides_are_enabled():",
            f"    options = dict({', '.join(f'{name}={name}' for name in options)})",
            f"    return handle(loss, ({', '.join(required)},), options)",
        ]
        for name, allowed in ranges.items():
            default = parameters[name].default
            scope |= {f"allowed_{name}": allowed, f"default_{name}": default}
            lines.append(f"if {name} is not default_{name}:")
            lines.append(f"    {name} = allowed_{name}({function.__name__!r}, {name!r}, {name})")
            if isinstance(default, int):  # as in torch's signatures
                lines.append(f"else: {name} = {float(default)}")
        lines.append(f"return function({_arguments(parameters.values())})")
        loss = _define(function.__name__, parameters.values(), lines, scope)
        scope["loss"] = functools.update_wrapper(loss, function)
        loss.ranges = ranges
        return loss

    return decorate


def described(**row):
    """Describes a loss for tests, documentation, benchmarks and ``verify``: a row of
    :mod:`lossops.specs`, whose field names the arguments are. A function with several kernels has
    several rows. The library itself does not read them."""

    def decorate(function: Callable) -> Callable:
        function.rows = (row, *getattr(function, "rows", ()))
        return function

    return decorate


class LossModule:
    """A module that calls a function of :mod:`lossops.functional`.

    A subclass names the function: ``class HuberLoss(LossModule, torch.nn.HuberLoss,
    function=huber_loss)``. Its ``forward`` takes the required arguments of the function, and
    ``weight`` and ``normalizer`` if the function has them and ``__init__`` does not. The other
    parameters that both have are read from the module. A class may also define ``forward`` itself.
    """

    def __init_subclass__(cls, function: Callable | None = None, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if function is None:  # a subclass of the user's
            return
        function.module = cls
        if "forward" not in vars(cls):
            cls.forward = _forward(cls, function)


def _forward(cls: type, function: Callable) -> Callable:
    held = inspect.signature(cls.__init__).parameters
    parameters = inspect.signature(function).parameters
    given = [p for p in parameters.values() if p.default is p.empty]
    # torch's modules name the input of one loss differently.
    theirs = list(inspect.signature(cls.forward).parameters)[1:]
    if len(theirs) == len(given):
        given = [p.replace(name=name) for name, p in zip(theirs, given, strict=True)]
    more = [
        parameters[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("weight", "normalizer")
        if name in parameters and name not in held
    ]
    own = [name for name in parameters if name in held and name not in ("size_average", "reduce")]
    arguments = [p.name for p in given] + [f"{name}=self.{name}" for name in own]
    arguments += [f"{p.name}={p.name}" for p in more]
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    lines = [f"return function({', '.join(arguments)})"]
    forward = _define("forward", [self, *given, *more], lines, {"function": function})
    forward.__qualname__, forward.__module__ = f"{cls.__qualname__}.forward", cls.__module__
    forward.__annotations__ = {p.name: p.annotation for p in (*given, *more)}
    forward.__annotations__["return"] = inspect.signature(function).return_annotation
    return forward


def _define(name: str, parameters: Iterable[inspect.Parameter], lines: list[str], scope: dict):
    """Defines a function of these parameters, whose body are these lines."""
    shown, keyword_only = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            shown.append("*")
        if parameter.default is parameter.empty:
            shown.append(parameter.name)
        else:
            scope[f"default_{parameter.name}"] = parameter.default
            shown.append(f"{parameter.name}=default_{parameter.name}")
    source = "\n    ".join([f"def {name}({', '.join(shown)}):", *lines])
    exec(compile(source, f"<lossops {name}>", "exec"), scope)
    return scope[name]


def _arguments(parameters: Iterable[inspect.Parameter]) -> str:
    """The arguments of a call that passes on all parameters."""
    return ", ".join(
        f"{p.name}={p.name}" if p.kind is p.KEYWORD_ONLY else p.name for p in parameters
    )
