"""``compiled``: ``jax.jit`` with the options of XLA that suit what a function does.

On CPU the first call of a function spends nearly all of its time in XLA, and most of
that in work that pays only if a function runs for long. So functions are compiled
without it, those that run once or twice without any optimisation, unless they are
large. The options hold for concrete values on CPU; within a program of the user's own,
under ``jax.grad``, and on other devices ``compiled`` is ``jax.jit``.

Knows JAX; knows no network.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp

Function = TypeVar("Function", bound=Callable)

# number of entries of a function's values from which optimised code is there sooner,
# where it runs once or twice: a network of 50 layers and as many entries compiles in a
# quarter of the time without, and runs half as fast
HUGE = 2**26
OPTIONS: Mapping[str, Any] = {
    # the older emitters compile twice as fast, and their code is about as fast
    "xla_cpu_use_fusion_emitters": False,
    # two loops that may run at once wait for each other's threads, on two cores for
    # ever; see also _numerics.after, for programs that are compiled by others
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
}
# programs of any size run as fast with this little, and compile in less time
BRISK: Mapping[str, Any] = {
    **OPTIONS,
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
}
HASTE: Mapping[str, Any] = {**OPTIONS, "xla_backend_optimization_level": 0}


def compiled(
    *, static_argnames: str | tuple[str, ...] = (), often: bool = False
) -> Callable[[Function], Function]:
    """Decorates a function as ``jax.jit`` does.

    Args:
      static_argnames: names of the static arguments. One that stands for a program
        says by an attribute ``entries`` how many values its arrays have.
      often: whether the function loops, so that its code must be fast at any size.
    """
    names = (static_argnames,) if isinstance(static_argnames, str) else static_argnames

    def decorate(function: Function) -> Any:
        form = _Compiled(function, names, often)
        return functools.update_wrapper(form, function, updated=())

    return decorate


# the options of each form; plain ones go with every device and within other programs
FORMS = {"plain": {}, "little": OPTIONS, "brisk": BRISK, "hasty": HASTE}


class _Compiled:
    """A function in its compiled forms, each made when it is first needed."""

    def __init__(self, function: Callable, static: tuple[str, ...], often: bool):
        self._function, self._static, self._often = function, static, often
        self._forms: dict[str, Any] = {}

    def _as(self, form: str) -> Any:
        """The function of ``jax.jit`` with the options of this form."""
        if form not in self._forms:
            self._forms[form] = jax.jit(
                self._function,
                static_argnames=self._static,
                compiler_options=_known(tuple(FORMS[form].items())),
            )
        return self._forms[form]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._as(self._form(args, kwargs))(*args, **kwargs)

    def _form(self, args: Any, kwargs: Any) -> str:
        """The name of the form that suits these arguments."""
        leaves = jax.tree.leaves((args, kwargs))
        # options do not go with a program that is compiled by others
        if jax.default_backend() != "cpu" or traced(leaves):
            return "plain"
        size = sum(getattr(one, "size", 0) for one in leaves)
        size += sum(getattr(one, "entries", 0) for one in (*args, *kwargs.values()))
        # who asks JAX for little optimisation gets no more of it here
        little = jax.config.read("jax_disable_most_optimizations")
        if little:
            return "little"
        return "brisk" if self._often or size > HUGE else "hasty"

    def _cache_size(self) -> int:
        """The number of programs so far, as of a function of ``jax.jit``."""
        return sum(form._cache_size() for form in self._forms.values())


def traced(tree: Any) -> bool:
    """Whether JAX is tracing, or differentiates or maps any array of this tree."""
    # within jax.jit new arrays are traced even where all arguments are known
    return any(
        isinstance(a, jax.core.Tracer) for a in (jnp.zeros(()), *jax.tree.leaves(tree))
    )


@functools.cache
def _known(options: tuple[tuple[str, Any], ...]) -> dict[str, Any] | None:
    """Those of the options that this version of XLA has; None if none are asked for."""
    if not options:
        return None

    def accepts(options: dict[str, Any]) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except RuntimeError:  # no such option
            return False
        return True

    if accepts(dict(options)):
        return dict(options)
    return {name: value for name, value in options if accepts({name: value})}
