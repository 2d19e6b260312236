"""Triton's interpreter, in half the time."""

from __future__ import annotations

import inspect


def patch_the_language_once_a_launch() -> None:
    """The interpreter puts functions of its own in the place of triton.language's. It should when a
    kernel is launched, and does so again in every call of another function by that kernel, where
    they are in place already: more than half of its time.

    This reaches into Triton. A release that has no such functions is left as it is.
    """
    from triton import language
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang", None)
    if patch is None or not hasattr(interpreter, "_LangPatchScope"):
        return
    patched = set()  # modules, as long as a kernel runs

    def patch_once(fn):
        seen = {
            value for value in fn.__globals__.values()
            if inspect.ismodule(value) and value in (language, language.core)
        }  # fmt: skip
        if seen and seen <= patched:
            return interpreter._LangPatchScope()  # nothing to restore
        scope = patch(fn)
        patched.update(seen)
        restore = scope.restore

        def restore_all():
            patched.clear()
            restore()

        scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_once
