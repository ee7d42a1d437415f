"""Engines, replicas and users without a model: the engine's own scheduler, steps as long as they were measured.

Discrete events by SimPy. What is modelled: requests that wait and rows that are written (``serving/scheduler.py``
itself), prompts in chunks beside decoding rows, replicas and how requests are placed on them, what a replica keeps of
conversations, processors that several share, and the work of what stands before the engines. What is not:
networks, garbage, and how engines slow each other but on average.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import simpy
from steps import Steps

from glm_export.serving.scheduler import Scheduler

AHEAD = 2
"""Requests a replica holds for each of its rows, as ``serving/ray/application.py`` has it."""
SLACK = 4
"""Requests a preferred replica may have above the one with least, as ``serving/ray/router.py`` has it."""


@dataclass(slots=True, kw_only=True)
class Asked:
    """A request. ``known``: tokens of its prompt that its conversation had, the user's ``talk``-th; NaN is not yet."""

    user: int
    prompt: int
    answer: int
    known: int = 0
    talk: int = 0
    came: float = math.nan
    first: float = math.nan
    done: float = math.nan
    cached: int = 0
    written: int = 0


class Processors:
    """Some that jobs share alike: each goes on as fast as one processor, or slower where there are more jobs.

    ``crowded``: how many times as long a job takes where every processor has one, as they share caches and memory.
    """

    def __init__(self, env: simpy.Environment, count: float, crowded: float = 1.0) -> None:
        self._env, self._count, self._crowded = env, count, crowded
        self._left: dict[simpy.Event, float] = {}
        self._since, self._plans = 0.0, itertools.count()
        self._plan = 0
        self.busy_s = 0.0

    @property
    def _rate(self) -> float:
        if len(self._left) < 2 or math.isinf(self._count):
            return 1.0
        others = min(len(self._left), self._count) - 1
        slower = 1 + (self._crowded - 1) * others / (self._count - 1) if self._count > 1 else 1.0
        return min(1.0, self._count / len(self._left)) / slower

    def work(self, seconds: float) -> simpy.Event:
        """An event that comes when so much work is done."""
        done = self._env.event()
        self._go_on()
        self._left[done] = seconds
        self._set_timer()
        return done

    def _go_on(self) -> None:
        passed = self._env.now - self._since
        self.busy_s += passed * min(len(self._left), self._count)
        for job in self._left:
            self._left[job] -= passed * self._rate
        self._since = self._env.now

    def _set_timer(self) -> None:
        self._plan = next(self._plans)
        if self._left:
            self._env.process(self._ring(self._plan, max(0.0, min(self._left.values())) / self._rate))

    def _ring(self, plan: int, seconds: float) -> Generator[Any, Any, None]:
        yield self._env.timeout(seconds)
        if plan != self._plan:
            return
        self._go_on()
        for job in [job for job, left in self._left.items() if left <= 1e-9]:
            del self._left[job]
            job.succeed()
        self._set_timer()


class Replica:
    """One engine. ``open``: requests it has. ``kept``: the last conversation it read of each user, and its tokens."""

    def __init__(self, env: simpy.Environment, steps: Steps, processors: Processors, keep_tokens: int) -> None:
        self._env, self._steps, self._processors, self._keep = env, steps, processors, keep_tokens
        self._scheduler = Scheduler(steps.scheduler())
        self._asked: dict[str, tuple[Asked, simpy.Event]] = {}
        self._keys, self._wake = itertools.count(), env.event()
        self.kept: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self.open = self._kept = 0
        self.busy_s = 0.0
        env.process(self._run())

    def answer(self, asked: Asked) -> simpy.Event:
        """An event that comes when it is answered."""
        key, done = str(next(self._keys)), self._env.event()
        self._asked[key] = asked, done
        self._scheduler.submit(key, asked.prompt)
        if not self._wake.triggered:
            self._wake.succeed()
        return done

    def _run(self) -> Generator[Any, Any, None]:
        while True:
            if not self._asked:
                self._wake = self._env.event()
                yield self._wake
            for key in self._scheduler.change_rows().admitted:
                asked, _ = self._asked[key]
                talk, kept = self.kept.get(asked.user, (-1, 0))
                asked.cached = min(asked.known, kept) if talk == asked.talk else 0
                if asked.cached:
                    self._scheduler.began_with(key, asked.cached)
            for call in self._scheduler.calls():
                places = self._scheduler.running
                rows = sum(places[key].unread == 1 for key in call)
                began = self._env.now
                yield self._processors.work(self._steps.step_s(rows, sum(call.values()) - rows))
                self.busy_s += self._env.now - began
                for key, count in call.items():
                    self._read(key, count)

    def _read(self, key: str, count: int) -> None:
        asked, done = self._asked[key]
        whole = self._scheduler.running[key].unread == count
        self._scheduler.advanced(key, count, written=int(whole))
        if not whole:
            return
        asked.written += 1
        if asked.written == 1:
            asked.first = self._env.now
        if asked.written == asked.answer:
            self._scheduler.forget(key)
            del self._asked[key]
            self._keep_row(asked)
            done.succeed()

    def _keep_row(self, asked: Asked) -> None:
        if self._keep:
            new = asked.prompt + asked.answer - 1
            self._kept += new - self.kept.pop(asked.user, (0, 0))[1]
            self.kept[asked.user] = asked.talk, new
            while self._kept > self._keep:
                self._kept -= self.kept.popitem(last=False)[1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What users do. Between an answer and the next question they think, ``think_s`` on average (exponential).

    ``question``, ``answer``: least and most tokens, drawn evenly on a logarithmic scale. ``turns``: of a conversation,
    whose prompt is all that was said before. ``system``: tokens every conversation begins with.
    """

    think_s: float
    question: tuple[int, int]
    answer: tuple[int, int]
    turns: int = 1
    system: int = 0

    def conversations(self, seed: int) -> Iterator[tuple[int, int, int, int]]:
        """Prompt, answer, how much of the prompt was said before, and in which conversation, request by request."""
        draw = random.Random(seed)
        for talk in itertools.count():
            said = self.system
            for turn in range(self.turns):
                question, answer = (_drawn(draw, bounds) for bounds in (self.question, self.answer))
                yield said + question, answer, said if turn else 0, talk
                said += question + answer


def _drawn(draw: random.Random, bounds: tuple[int, int]) -> int:
    return round(math.exp(draw.uniform(*map(math.log, bounds))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is simulated. ``processors``: that replicas and what stands before them share; infinite where each has its
    own. ``front_s``: work before and behind an engine, for each request. ``routing``: ``load``, ``prefix``, ``random``.
    ``keep_tokens``: that a replica keeps of conversations.
    """

    steps: Steps
    replicas: int
    processors: float = math.inf
    front_s: float = 0.0
    routing: str = "load"
    keep_tokens: int = 0


@dataclass(slots=True)
class Found:
    """Requests that were answered within ``seconds``, after the first ones were left out."""

    answered: list[Asked] = field(default_factory=list)
    seconds: float = 0.0
    busy: float = 0.0

    @property
    def tokens_s(self) -> float:
        """Written."""
        return sum(one.answer for one in self.answered) / self.seconds

    @property
    def reused(self) -> float:
        """Of prompts' tokens, the share that was not read again."""
        return sum(one.cached for one in self.answered) / max(1, sum(one.prompt for one in self.answered))

    def quantile(self, what: Callable[[Asked], float], percent: float) -> float:
        """Of all answers; NaN of none."""
        values = sorted(map(what, self.answered))
        return values[min(len(values) - 1, int(len(values) * percent / 100))] if values else math.nan


def whole_s(one: Asked) -> float:
    """From the question to all of the answer."""
    return one.done - one.came


def first_s(one: Asked) -> float:
    """From the question to the first token."""
    return one.first - one.came


def between_s(one: Asked) -> float:
    """From one token to the next, on average."""
    return (one.done - one.first) / max(1, one.answer - 1)


def simulate(cluster: Cluster, users: int, behaviour: Behaviour, *, seconds: float, seed: int = 0) -> Found:
    """Let users ask for a while.

    Args:
        cluster: which answers.
        users: each asks, waits for all of the answer, thinks, and asks again.
        behaviour: theirs.
        seconds: of the cluster's time; the first fifth is left out.
        seed: of everything that is drawn.
    """
    env = simpy.Environment()
    processors = Processors(env, cluster.processors, cluster.steps.crowded)
    replicas = [Replica(env, cluster.steps, processors, cluster.keep_tokens) for _ in range(cluster.replicas)]
    most = AHEAD * cluster.steps.options["max_rows"]
    found, draw, freed = Found(seconds=seconds * 0.8), random.Random(seed), [env.event()]
    last: dict[int, Replica] = {}

    def placed(user: int) -> Replica | None:
        free = [one for one in replicas if one.open < most]
        if not free:
            return None
        least = min(one.open for one in free)
        if cluster.routing == "random":
            return draw.choice(free)
        if cluster.routing == "prefix" and user in last and last[user].open <= min(least + SLACK, most - 1):
            return last[user]
        return draw.choice([one for one in free if one.open == least])

    def live(user: int) -> Generator[Any, Any, None]:
        think = random.Random(seed * 1_000_003 + user)
        asking = behaviour.conversations(seed * 1_000_003 + user)
        if behaviour.think_s:
            yield env.timeout(think.expovariate(1 / behaviour.think_s))
        for prompt, answer, known, talk in asking:
            asked = Asked(user=user, prompt=prompt, answer=answer, known=known, talk=talk, came=env.now)
            if cluster.front_s:
                yield processors.work(cluster.front_s)
            while (replica := placed(user)) is None:
                yield freed[0]
            last[user] = replica
            replica.open += 1
            yield replica.answer(asked)
            replica.open -= 1
            freed[0].succeed()
            freed[0] = env.event()
            asked.done = env.now
            if asked.done > seconds * 0.2:
                found.answered.append(asked)
            if behaviour.think_s:
                yield env.timeout(think.expovariate(1 / behaviour.think_s))

    for user in range(users):
        env.process(live(user))
    env.run(until=seconds)
    found.busy = sum(one.busy_s for one in replicas) / (seconds * len(replicas))
    return found
