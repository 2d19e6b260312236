"""The decorator of public losses, and the base class of their modules."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from lossops.core.arguments import Range
from lossops.core.overrides import handle, overrides_are_enabled


def public(**ranges: Range):
    """Declares a public loss: validates its hyperparameters, and lets tensor subclasses and modes
    override the call.

    Args:
        **ranges: the values that each hyperparameter may have. They are attributes of the loss,
            ``ranges``, from which the tests derive calls that must raise. Defaults are not checked.
    """

    def decorate(function: Callable) -> Callable:
        parameters = inspect.signature(function).parameters
        places = [(list(parameters).index(name), name, held) for name, held in ranges.items()]
        title = function.__name__

        @functools.wraps(function)
        def loss(*args, **kwargs):
            given = (*args, *kwargs.values()) if kwargs else args  # usually there are no keywords
            if has_torch_function_variadic(*given) and overrides_are_enabled():
                return handle(loss, parameters, args, kwargs)
            for place, name, held in places:
                if name in kwargs:
                    kwargs[name] = held(title, name, kwargs[name])
                elif place < len(args):
                    args = (*args[:place], held(title, name, args[place]), *args[place + 1 :])
            return function(*args, **kwargs)

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
    """Passes what a module holds to its function.

    A subclass names the function: ``class HuberLoss(LossModule, torch.nn.HuberLoss,
    function=huber_loss)``. ``forward`` takes the required arguments of the function, and the
    optional tensors ``weight`` and ``normalizer`` if the function has them and ``__init__`` does
    not. All other parameters are attributes of the module. A class may also define ``forward``
    itself.
    """

    def __init_subclass__(cls, function: Callable | None = None, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if function is None:  # a subclass of the user's
            return
        function.module = cls
        if "forward" in vars(cls):
            return
        held = inspect.signature(cls.__init__).parameters
        parameters = inspect.signature(function).parameters
        required = [p for p in parameters.values() if p.default is p.empty]
        extra = [
            parameters[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for name in ("weight", "normalizer")
            if name in parameters and name not in held
        ]
        own = [p for p in held if p in parameters and p not in ("size_average", "reduce")]
        # torch's modules name the input of one loss differently.
        theirs = list(inspect.signature(cls.forward).parameters.values())[1:]
        if len(theirs) == len(required):
            required = [ours.replace(name=p.name) for ours, p in zip(required, theirs, strict=True)]
        shown = [*required, *extra]
        names = [p.name for p in shown]
        count = len(required)

        def forward(self, *args, **kwargs) -> Tensor | tuple[Tensor, ...]:
            kwargs.update(zip(names, args, strict=False))
            tensors = [kwargs.pop(name) for name in names[:count] if name in kwargs]
            if len(tensors) < count or len(args) > len(names):
                raise TypeError(f"forward() takes {', '.join(names)}; got {len(args)} arguments")
            return function(*tensors, **{name: getattr(self, name) for name in own}, **kwargs)

        self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        forward.__signature__ = inspect.Signature([self, *shown])
        cls.forward = forward
