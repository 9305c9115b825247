"""Chooses among the findings of a document and words them as tasks: instruction-response pairs.

At most `MAX_TASKS_OF_A_KIND` of each kind. Which findings are taken, which form each takes, in which wording, and in
which order the tasks stand is drawn by hashes of the seed, the document's id and the finding's place, so that no
two choices move together. A passage is inserted into a wording, never formatted. Options follow the convention of
`templates.pair_kinds`, so that rendering labels and shuffles them.

Cost: a few short hashes a finding.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from beam_pipelines.mining.bank import FORMS, KINDS, RELATIONS, MiningBank
from beam_pipelines.mining.findings import Finding, FindingExtractor
from contracts.records import Document, InstructionPair
from contracts.seeding import stable_hash
from templates.pair_kinds import OPTION_MARK, OPTIONS_MARK

MAX_TASKS_OF_A_KIND = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class MinedTask:
    """A task, what kind it is, and the form it took."""

    kind: str
    form: str
    pair: InstructionPair


class TaskMiner:
    """Mines documents with one bank and one seed."""

    def __init__(self, bank: MiningBank, *, seed: int) -> None:
        self._bank = bank
        self._seed = seed
        self._extractor = FindingExtractor(bank)

    def mine(self, document: Document, *, keywords: AbstractSet[str] = frozenset()) -> list[MinedTask]:
        """The tasks of a document, no two with the same instruction; none when nothing was found."""
        findings = self._extractor.extract(document, keywords=keywords)
        tasks: list[MinedTask] = []
        for kind in KINDS:
            indexes = [index for index, finding in enumerate(findings) if RELATIONS[finding.relation].kind == kind]
            of_kind: dict[str, MinedTask] = {}
            for index in sorted(indexes, key=lambda index: self._draw(document, "finding", index)):
                if len(of_kind) == MAX_TASKS_OF_A_KIND:
                    break
                task = self._word(document, findings[index], index)
                of_kind.setdefault(task.pair.instruction, task)
            tasks += of_kind.values()
        order = sorted(range(len(tasks)), key=lambda index: self._draw(document, "order", index))
        return [tasks[index] for index in order]

    def _draw(self, document: Document, name: str, index: int) -> int:
        return stable_hash(self._seed, "mine", name, document.doc_id, index)

    def _word(self, document: Document, finding: Finding, index: int) -> MinedTask:
        relation = RELATIONS[finding.relation]
        # A title without an opening behind it can still be asked for.
        forms = [name for name in relation.forms if finding.values.keys() >= set(FORMS[name].needed)]
        form = forms[self._draw(document, "form", index) % len(forms)]
        wordings = self._bank.wordings[form]
        wording = wordings[self._draw(document, "wording", index) % len(wordings)]
        instruction = wording.instruction.fill(**finding.values)
        response_field = FORMS[form].response
        if response_field is None:
            instruction += OPTIONS_MARK + "\n".join(f"{OPTION_MARK}{option}" for option in wording.options.values())
            response = wording.options[finding.relation]
        else:
            response = finding.values[response_field]
        return MinedTask(
            kind=relation.kind, form=form, pair=InstructionPair(instruction=instruction, response=response)
        )
