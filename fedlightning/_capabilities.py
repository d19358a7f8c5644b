"""Which hooks of a base class a subclass has made its own: asked once, when the class is made.

A class with hooks keeps the answer as `own_hooks`, and sets it for each subclass:

    own_hooks: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.own_hooks = own_hooks(cls, Base, HOOKS)

Fast paths look at it. A class that wraps a hook, e.g. to log its calls, changes nothing; it says `own_hooks = frozenset()` in its
body and loses no fast path. What it wraps counts as before.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import getattr_static


def own_hooks(cls: type, base: type, hooks: Iterable[str]) -> frozenset[str]:
    """The names among `hooks` for which `cls` has another function than `base`.

    A class whose body declares `own_hooks` has made its own only those that it names; the others are looked up in the classes
    behind it.

    Args:
        cls: a subclass, mix-ins among its bases or not.
        base: the class whose hooks they are.
        hooks: their names, all of which `base` has.
    """
    return frozenset(name for name in hooks if _is_own(cls, base, name))


def _is_own(cls: type, base: type, name: str) -> bool:
    usual = getattr_static(base, name)
    for each in cls.__mro__:
        if vars(each).get(name, usual) is not usual:
            if name in vars(each).get("own_hooks", (name,)):
                return True
        elif each is base or name in vars(each):
            return False
    return False
