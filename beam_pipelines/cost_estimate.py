"""What a synthesis will cost, from its counts and from what is known of speed and price. Arithmetic, nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """What a dry run takes for granted. None of it changes a result.

    Args:
        new_tokens_per_second: How fast one worker generates, over all prompts of a batch; 0 when not known. A run of a
            few hundred documents tells: it is the speed that ``status`` shows, with the reading of prompts counted in.
        prompt_tokens_per_second: How fast one worker reads prompts, where ``new_tokens_per_second`` leaves that out; 0
            where it does not.
        price_per_hour: Of one worker, in any currency.
        num_workers: Workers that run at the same time.
        completion_share: How much of ``sampling.max_new_tokens`` a completion takes on average.
    """

    new_tokens_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    price_per_hour: float = 0.0
    num_workers: int = 1
    completion_share: float = 0.6

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            ValueError: A setting is impossible.
        """
        for name in ("new_tokens_per_second", "prompt_tokens_per_second", "price_per_hour"):
            if getattr(self, name) < 0:
                raise ValueError(f"estimate.{name} is {getattr(self, name)}; it must not be below 0.")
        for name in ("prompt_tokens_per_second", "price_per_hour"):
            if getattr(self, name) and not self.new_tokens_per_second:
                raise ValueError(f"estimate.{name} says nothing without estimate.new_tokens_per_second; give both.")
        if self.num_workers < 1:
            raise ValueError(f"estimate.num_workers is {self.num_workers}; it must be at least 1.")
        if not 0 < self.completion_share <= 1:
            raise ValueError(f"estimate.completion_share is {self.completion_share}; it must be above 0 and at most 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Time and money. ``worker_hours`` add up over workers, ``hours`` are by the clock, ``price`` in the currency."""

    worker_hours: float
    hours: float
    price: float


def cost_of(config: EstimateConfig, *, num_prompt_tokens: int, num_new_tokens: int) -> Cost | None:
    """What reading and generating so many tokens costs; None when no speed is given."""
    if not config.new_tokens_per_second:
        return None
    seconds = num_new_tokens / config.new_tokens_per_second
    if config.prompt_tokens_per_second:
        seconds += num_prompt_tokens / config.prompt_tokens_per_second
    worker_hours = seconds / 3600
    return Cost(
        worker_hours=worker_hours,
        hours=worker_hours / config.num_workers,
        price=worker_hours * config.price_per_hour,
    )
