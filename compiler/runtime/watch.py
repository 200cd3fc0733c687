"""Notice, in microseconds per call, that Python state which graphs read has changed.

A call asks whether a dictionary was written (``dict_writes``), and compares by identity what is
not one: the items of lists, global names, closures, classes of modules. Only where one of these
moved are the values that graphs read compared. Dictionaries that moved once are guarded apart:
guards of torch cannot be replaced one by one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any

import torch
import torch._C._dynamo.guards as guards
from torch.utils.hooks import RemovableHandle

from compiler.capture.python_reads import Reads
from compiler.capture.state_owners import ABSENT, Change, Kind, Owner, summary
from compiler.errors import CommPlanError, DivergenceError
from compiler.ir.rank_exchange import Exchange
from compiler.runtime import dict_writes

Slots = Iterable[tuple[dict[str, Any], str]]


@dataclass(frozen=True)
class Reason:
    """Why a model is captured anew; false if it is not.

    Attributes:
        names: of the values that have changed.
        text: how.
    """

    names: tuple[str, ...]
    text: str = field(compare=False)

    def __bool__(self) -> bool:
        return bool(self.names)


UNCHANGED = Reason((), "no change")


class Watched:
    """One graph under watch.

    Attributes:
        reads: what it read when it was traced.
        changed: identity of an owner -> how it differs from that now.
    """

    def __init__(self, reads: Reads, refresh: Callable[[], object]) -> None:
        self.reads, self.refresh = reads, refresh
        self.changed: dict[int, list[Change]] = {}

    @property
    def is_valid(self) -> bool:
        """Whether the state is as the graph read it."""
        return not self.changed

    @property
    def reason(self) -> Reason:
        """All that differs from what the graph read, in an order that all ranks have."""
        listed = (change for changes in self.changed.values() for change in changes)
        changes = sorted(listed, key=lambda change: change.name)
        return Reason(tuple(dict.fromkeys(c.name for c in changes)), summary(changes))

    @property
    def releases_state(self) -> bool:
        """Whether the graph alone keeps a module or tensor alive that the model has let go of."""
        return any(c.releases_state for listed in self.changed.values() for c in listed)

    def compare(self, moved: Iterable[int]) -> bool:
        """Compare what was read of the owners that moved; whether there are others to watch now."""
        owners, before = self.reads.owners, len(self.reads.owners)
        changed = {at: self.reads.changes(owners[at]) for at in list(moved) if at in owners}
        changed[0] = self.reads.untied()
        self.changed |= changed
        self.changed = {at: listed for at, listed in self.changed.items() if listed}
        return len(owners) != before


class Watch:
    """The Python state that the graphs of one model read.

    Attributes:
        state: numbers of the graphs that are right in the present state.
    """

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self.state: tuple[int, ...] = ()
        self._graphs: dict[int, Watched] = {}
        self._count = 0
        self._owners: dict[int, Owner] = {}
        self._moving: set[int] = set()
        self._still, self._moved = _Versions({}), _Versions({})
        self._arm()

    def add(self, reads: Reads, slots: Slots = (), refresh: Callable[[], object] = int) -> Watched:
        """Watch what a new graph read.

        Args:
            reads: recorded by its trace.
            slots: tables and keys of the tensors that the graph gets anew at every call.
            refresh: reads those tensors again; called on a valid graph when something has moved.
        """
        for table, key in slots:
            reads.bind(table, key)
        for graph in self._graphs.values():  # a trace moves versions, which are taken anew below
            graph.compare(graph.reads.owners)
        self._graphs[self._count] = added = Watched(reads, refresh)
        self._count += 1
        self._still = _Versions({})
        self._arm()
        return added

    def remove(self, graph: Watched) -> None:
        """Forget a graph, and all that it read."""
        self._graphs = {n: other for n, other in self._graphs.items() if other is not graph}
        self._arm()

    def unchanged(self) -> bool:
        """Whether nothing has moved since the last ``update``; to be asked at every call."""
        return (
            self._still.unchanged()
            and self._moved.unchanged()
            and RemovableHandle.next_id == self._next_hook
            and list(map(type, self._modules)) == self._classes
            and self._has_same_items()
        )

    def update(self) -> None:
        """Compare what has moved with what graphs read, and watch from here on."""
        kinds = set[Kind]()
        if RemovableHandle.next_id != self._next_hook:
            kinds.add(Kind.HOOKS)
        if list(map(type, self._modules)) != self._classes:
            kinds.add(Kind.TYPES)
        if not self._has_same_items():
            kinds |= {Kind.CLASS, Kind.GLOBALS, Kind.CELLS, Kind.SEQUENCE, Kind.TENSORS}
        moved = self._still.moved() | self._moved.moved()
        needs_arming = bool(kinds) or not moved <= self._moving
        self._moving |= moved
        moved |= {at for at, owner in self._owners.items() if owner.kind in kinds}
        for graph in self._graphs.values():
            needs_arming |= graph.compare(moved)
            if graph.is_valid:
                graph.refresh()
        if needs_arming:
            self._arm()
        else:
            self._moved = _Versions(self._moved.dicts)
            self.state = self._valid()

    def _arm(self) -> None:
        """Take the present state for the one to compare with."""
        self.state = self._valid()
        self._owners = {
            at: owner for graph in self._graphs.values() for at, owner in graph.reads.owners.items()
        }
        of_kind: dict[Kind, list[Owner]] = {kind: [] for kind in Kind}
        dicts: dict[int, dict[Any, Any]] = {}
        guarded = self._still.dicts.keys() | self._moved.dicts.keys()
        for at, owner in self._owners.items():
            of_kind[owner.kind].append(owner)
            if (dictionary := _dictionary(owner)) is not None:
                dicts[at] = dictionary
                if owner.kind is Kind.ATTRIBUTES and at not in guarded:
                    dict_writes.move_attributes(dictionary)
        self._names = [
            (vars(owner.target) if owner.kind is Kind.CLASS else owner.target, key)
            for at, owner in self._owners.items()
            if owner.kind in (Kind.CLASS, Kind.GLOBALS) and at not in dicts
            for key in owner.values
        ]
        closures = (owner.target.__closure__ for owner in of_kind[Kind.CELLS])
        self._cells = [cell for closure in closures for cell in closure if not _is_empty(cell)]
        self._sequences = [owner.target for owner in of_kind[Kind.SEQUENCE]]
        self._lengths = list(map(len, self._sequences))
        self._tensors = _one_of_each_type(owner.target for owner in of_kind[Kind.TENSORS])
        self._modules = [m for owner in of_kind[Kind.TYPES] for m in owner.target.values()]
        self._classes = list(map(type, self._modules))
        self._next_hook = RemovableHandle.next_id
        self._items = self._items_now()
        still = {at: dictionary for at, dictionary in dicts.items() if at not in self._moving}
        if still.keys() != self._still.dicts.keys():
            self._still = _Versions(still)
        self._moved = _Versions(
            {at: dictionary for at, dictionary in dicts.items() if at in self._moving}
        )

    def _valid(self) -> tuple[int, ...]:
        return tuple(n for n, graph in self._graphs.items() if graph.is_valid)

    def _has_same_items(self) -> bool:
        try:
            now = self._items_now()
        except ValueError:  # a closure was emptied
            return False
        return (
            list(map(len, self._sequences)) == self._lengths
            and len(now) == len(self._items)
            and all(map(is_, now, self._items))
        )

    def _items_now(self) -> list[Any]:
        """What has no version: global names, closures, items of sequences, types of tensors."""
        items = [names.get(key, ABSENT) for names, key in self._names]
        items += [cell.cell_contents for cell in self._cells]
        items += chain.from_iterable(self._sequences)
        for tensor in self._tensors:
            items += (tensor.dtype, tensor.device.index)
        return items


class _Versions:
    """Dictionaries, and whether any was written since, as the interpreter or torch tell it.

    Attributes:
        dicts: identity of the owner -> dictionary.
    """

    def __init__(self, dicts: dict[int, dict[Any, Any]]) -> None:
        """Take the present versions."""
        self.dicts, self._listed = dicts, list(dicts.values())
        for dictionary in self._listed:
            dict_writes.watch(dictionary)
        self._count = dict_writes.count  # first: what another thread writes from here on is noticed
        self._versions = list(map(dict_writes.version, self._listed))
        self._check = None if dict_writes.are_told else _guard(self._listed)

    def unchanged(self) -> bool:
        """Whether all dictionaries have the versions that were taken."""
        if self._check is not None:
            return self._check(self._listed)
        if dict_writes.are_told and dict_writes.count == self._count:
            return True
        count = dict_writes.count
        if list(map(dict_writes.version, self._listed)) != self._versions:
            return False
        self._count = count
        return True

    def moved(self) -> set[int]:
        """Owners whose dictionaries were written."""
        now = map(dict_writes.version, self._listed)
        return {at for at, old, new in zip(self.dicts, self._versions, now, strict=True)
                if old != new}  # fmt: skip


def _guard(dicts: list[dict[Any, Any]]) -> Callable[[Any], bool] | None:
    """A check of all versions in one call of C++; None where torch has it not, or another form."""
    try:
        from torch._dynamo.guards import GuardManagerType

        root = guards.RootGuardManager()
        for at, dictionary in enumerate(dicts):
            item = root.list_getitem_manager(at, "", dictionary, GuardManagerType.GUARD_MANAGER)
            item.add_dict_version_guard(dictionary, [""], None)
        check: Callable[[Any], bool] = root.check
        return check if check(dicts) is True else None
    except (AttributeError, ImportError, TypeError):
        return None


def _dictionary(owner: Owner) -> dict[Any, Any] | None:
    """The dictionary whose version tells that an owner was written; None where there is none."""
    match owner.kind:
        case Kind.ATTRIBUTES | Kind.TENSORS | Kind.ITEMS:
            return owner.target  # type: ignore[no-any-return]
        case Kind.HOOKS:  # every hook that is added counts one up; those that are there may go
            return owner.target or None
        case Kind.CLASS:
            referents = gc.get_referents(vars(owner.target))
            return next((x for x in referents if type(x) is dict), None)
        case _:
            return None


def _one_of_each_type(tables: Iterable[dict[str, Any]]) -> list[torch.Tensor]:
    """Tensors that tell whether all were converted through ``.data``, which moves no version.

    ``model.double()`` converts parameters so, and replaces buffers.
    """
    tensors = (x for table in tables for x in table.values() if isinstance(x, torch.Tensor))
    return list({(type(x), x.dtype, x.device): x for x in tensors}.values())


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def compare_reasons(exchange: Exchange, reason: Reason) -> None:
    """Raise unless all ranks capture for the same reason; all ranks must call it.

    Args:
        exchange: the ranks.
        reason: what makes this rank capture anew; ``UNCHANGED`` for a first call of its kind.

    Raises:
        DivergenceError: ranks see different changes, or this one waits for others in vain.
    """
    remedy = "change the model alike on all ranks, and before the same call"
    try:
        everyone = exchange.gather(reason)
    except CommPlanError as error:
        if not reason:
            raise
        raise DivergenceError(
            f"rank {exchange.rank} saw a change of the model that other ranks may not have seen",
            found=f"{reason.text}; {error.what}",
            remedy=remedy,
        ) from error
    if any(other != reason for other in everyone):
        raise DivergenceError(
            "ranks see different changes of the model",
            found="; ".join(f"rank {rank}: {other.text}" for rank, other in enumerate(everyone)),
            remedy=remedy,
        )
