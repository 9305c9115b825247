"""How the inference step runs: what it needs of a worker, and how it is fed. Nothing here changes a result."""

from __future__ import annotations

from dataclasses import dataclass

from apache_beam.transforms.resources import parse_resource_hints


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How the inference step runs. All of it may differ when a run is started again.

    Args:
        accelerator: What the step's workers have, as Beam says it, such as ``type:nvidia-l4;count:1;
            install-nvidia-driver``; empty for no wish. Runners without such workers pass over it.
        min_ram: Memory that a worker of the step has at least, such as ``32GB``; empty for no wish.
        sorted_batches: So many batches' worth of prompts are gathered and sorted by length before they are cut into
            batches, where the engine pads: more leaves less padding, but a chain's next round comes later, when the
            engine's cache (``engine.prefix_cache_bytes``) may not hold the one before it any more.
        max_batch_seconds: A batch that takes longer ends the run with an error instead of hanging it; 0 is no limit.
    """

    accelerator: str = ""
    min_ram: str = ""
    sorted_batches: int = 4
    max_batch_seconds: float = 3600.0

    def resource_hints(self) -> dict[str, str]:
        """What is wished for, as arguments of ``with_resource_hints``."""
        wishes = {"accelerator": self.accelerator, "min_ram": self.min_ram}
        return {name: wish for name, wish in wishes.items() if wish}

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        if self.sorted_batches < 1:
            raise ValueError(f"inference.sorted_batches is {self.sorted_batches}; it must be at least 1.")
        if self.max_batch_seconds < 0:
            raise ValueError(f"inference.max_batch_seconds is {self.max_batch_seconds}; give seconds, 0 for no limit.")
        if self.accelerator and not self.accelerator.startswith("type:"):
            raise ValueError(
                f"inference.accelerator is {self.accelerator!r}; Beam takes options behind 'type:', such as "
                "'type:nvidia-l4;count:1;install-nvidia-driver'."
            )
        try:
            parse_resource_hints(self.resource_hints())
        except ValueError as error:
            raise ValueError(
                f"inference.accelerator or inference.min_ram cannot be read: {error} Memory is a number with a unit, "
                "such as '32GB' or '32GiB'."
            ) from error
