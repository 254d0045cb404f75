"""Trains the tokenizer of the models that `swarm-inference make-model` writes.

Development only: `scheduler/data/demo_tokenizer.json` is kept in the repository and this is how it
was made. Needs the `tokenizers` and `swarm-safety` packages. The corpus is SWARM's own prompts over
invented observations, JSON answers, and the English below, so that a SWARM prompt has about as many
tokens as with a real model's tokenizer. The same package versions give the same file.
"""

from __future__ import annotations

import argparse
import json
import random
import string
from collections.abc import Iterator
from pathlib import Path

from swarm.agents.base import Observation
from swarm.agents.llm_config import PersonaType
from swarm.agents.llm_prompts import (
    build_accept_prompt,
    build_action_prompt,
    build_kernel_action_prompt,
)
from swarm.models.agent import AgentState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

OUTPUT = Path(__file__).parent.parent / "scheduler" / "data" / "demo_tokenizer.json"
VOCABULARY_SIZE = 4096
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|pad|>",
)

ENGLISH = """
The harbour opens before sunrise, and by seven the first boats have already sold most of their
catch. Buyers who come every day are given a better price than strangers, not out of kindness but
because a regular customer is worth more than one good sale. When a seller cheats, the news
travels along the quay within an hour. I would rather share what I know with the group than keep a
small advantage for myself. If we all post useful work, everyone can build upon it, and the next
step becomes easier. I think that trust should be earned slowly. My reputation is low this epoch,
so I will accept a fair offer and return good quality. They rejected my last proposal, which was
probably the right decision given the cost. Let me wait for one more turn and observe. The
expected payoff is positive, the counterparty has been reliable, and the audit risk remains
acceptable. Because several agents depend on the same shared resource, careless extraction by one
of them hurts the others. She measured the temperature twice, wrote both values in her notebook,
and asked a colleague to check them. A rule that nobody enforces is only advice; a rule that is
enforced unfairly becomes a reason to leave. What would happen if the tax were doubled? Some would
trade less, some would hide their trades, and a few would simply pay. Nobody knows in advance,
which is exactly why we simulate it and compare many different seeds. Thank you for the helpful
review. I have fixed the error in section two and added a short summary of the method. Please
verify the result before you publish it. Does the evidence support the claim, or was it merely
repeated? Collaboration works best when each partner knows what the other one wants and can walk
away at any time. The committee voted against the change, although most members agreed that the
current system is not perfect. We can reduce waste, improve safety and still finish before the
deadline, provided that nobody drops out early. It isn't clear whether the newcomer is honest;
let's start with something small, then decide after we've seen it. You won't need more than a
handful of examples to explain the pattern, but you'll want a baseline to compare with. In the
long run, cooperation pays, yet in any single round the temptation to defect is strong and easily
hidden. First they gathered data, then they trained a small model, and finally they evaluated its
answers by hand. Each message contains a title, an author, a body and a score between zero and
one. Older messages are archived. Rain fell through the night. In the morning the river had risen
above the lower fields and the road was closed. Children learn quickly which promises are kept.
Institutions learn the same lesson, only much more slowly.
"""

WORDS = """
able about above accept access account accurate achieve across action active actual adapt add
adjust admit adopt advance advantage adverse advice affect afford again against agree aim alarm
alert algorithm align allocate allow almost alone along already also alter always among amount
analysis analyze annual another answer any appeal appear apply approach approve area argue
argument around arrange article artifact ask aspect assess asset assign assist assume attack
attempt attention auction audit available average avoid award aware balance ban bargain base basic
because become before begin behave behavior belief belong benchmark benefit best better between
beyond bias bid big black block blue board body bond bonus book both boundary bounty brain branch
break brief bring broad budget buffer build burden business buy calculate call campaign capable
capacity capital care careful carry case cause caution center central certain chain challenge
chance change channel charge cheap check choice choose circle circuit citizen city claim class
clean clear close coalition code cold collapse collect collective combine come commit common
community company compare compete complete complex comply component compute concern conclude
condition conduct confidence confirm conflict connect consider consistent constant constraint
construct consume contact contain content contest context continue contract contribute control
convince copy core correct cost could council count country couple course cover create credible
credit crisis critical cross crowd culture curious current curve cut cycle damage danger dark data
date day deal debate debt decay deceive decide decision decline deep default defend define degree
delay delegate deliver demand deny depend deploy deposit derive describe design desire detail
detect determine develop deviate device differ difficult diligent direct discount discover discuss
dispute distance distribute diverse divide document domain double doubt down draft draw drift
drive drop due during duty dynamic each early earn easy economy edge effect efficient effort
either elect element else emerge emphasis employ enable encourage end energy enforce engage enough
ensure enter entire environment equal error escalate escrow establish estimate ethical evaluate
even event evidence evolve exact examine example exceed except exchange exclude execute exercise
exhaust exist expand expect expensive experience experiment expert explain exploit explore export
expose express extend extra extract extreme face fact fail fair faith fake fall false familiar far
fast fault favor fear feature federal fee feed feel few field figure filter final finance find
fine finish firm first fit fix flag flexible flow focus follow force forecast forget form formal
forward foundation fraction frame free frequent fresh friend front full function fund future gain
game gap gather general generate gentle get gift give global goal good govern grade gradual grant
graph great green ground group grow growth guarantee guard guess guide habit half hand handle
happen hard harm have head health hear heavy help hide high history hold home honest hope hour
house human idea identify identity idle ignore image impact implement imply import important
improve incentive include income increase independent index indicate individual industry infer
influence inform initial innovate input inside insight inspect install instead insure integrate
intelligent intend interest internal interpret interval introduce invest invite involve isolate
issue item join joint judge jump just keep key kind know knowledge label labor lack language large
last late launch law lead learn least leave left legal lend length less level leverage liability
library license life light like likely limit line link list listen little live load local lock
logic long look loss lost low machine main maintain major make manage manipulate manual many map
margin mark market master match material matrix matter maximum mean measure mechanism media medium
meet member memory mention merge message method metric middle minimum minor minute mission mistake
mix mode model moderate modify moment monitor month moral more most motive move much multiple must
mutual name narrow nation natural nature near necessary need negative negotiate network neutral
never new next noise none norm normal north note nothing notice now number object observe obtain
obvious occur odd offer office often old once open operate opinion opportunity optimal option
order organize origin other outcome output outside over overall own pace page pair panel paper
parallel part participate partner party pass past path patient pattern pause pay peace peer
penalty people perceive percent perfect perform perhaps period permit person phase pick piece
place plan plant platform play plenty point policy pool poor popular portion position possible
post potential power practice precise predict prefer premium prepare present preserve press
prevent previous price primary principle prior private prize probe problem process produce product
profit program progress project promise promote proof proper property propose protect protocol
prove provide public publish punish purchase pure purpose push quality quarter question quick
quiet quite quote race raise random range rank rapid rare rate rather ratio reach react read ready
real reason receive recent recipe recognize recommend record recover reduce refer reform refuse
regard region regular regulate reject relate relax release reliable rely remain remember remind
remote remove rent repair repeat replace reply report represent request require research reserve
resist resolve resource respect respond rest restore restrict result retain return reveal revenue
reverse review reward rich right rigid ring rise risk river road robust role room root rotate
rough round route rule run safe sale same sample sanction save scale scan scarce scenario schedule
scheme science scope score search season second secret section sector secure see seek seem select
self sell send sense separate sequence series serious serve service session set settle several
shape share sharp shift ship short should show sick side sign signal silent similar simple since
single site size skill slight slow small smart smooth social society soft solid solution solve
some soon sort source south space speak special specific speed spend split spot spread stable
staff stage stake stand standard start state status stay steady steal step still stock stop store
story strategy stream strength stress strict strike strong structure study style subject submit
subtle success such suffer sufficient suggest suit supply support suppose sure surface surplus
surprise survey survive suspect sustain switch symbol system table take talk target task teach
team technical tell temporary tend term test text than thank their theme then theory there these
thing think third though thought thread threat three through throughout tie time tiny title today
together token tomorrow tool top topic total touch toward town track trade tradition traffic train
transfer transform transparent travel treat trend trial trigger true trust truth try turn type
typical uncertain under understand uniform union unique unit universal unless until unusual update
upon upper urban urgent use useful usual utility valid value variable vary vast verify version
very veto victim view village violate virtual visible vision visit voice volume vote wage wait
walk wall want warn waste watch water wave weak wealth week weigh welcome well west what when
where whether which while white whole why wide will win window wise wish with withdraw within
without witness wonder word work world worry worth would write wrong year yellow yes yesterday yet
yield young zero zone
"""

ACTIONS: dict[str, tuple[str, ...]] = {
    "NOOP": (),
    "POST": ("content",),
    "REPLY": ("post_id", "content"),
    "VOTE": ("post_id", "direction"),
    "PROPOSE_INTERACTION": ("counterparty_id", "interaction_type", "content"),
    "CLAIM_TASK": ("task_id",),
    "SUBMIT_OUTPUT": ("task_id", "content"),
}
INTERACTION_TYPES = ("collaboration", "delegation", "verification", "reply", "trade", "vote")
AGENT_KINDS = ("honest", "strategic", "adversarial", "open", "llm", "agent", "opportunistic")
METRICS = (
    "toxicity_rate",
    "quality_gap",
    "acceptance_rate",
    "average_quality",
    "total_interactions",
    "total_welfare",
    "active_agents",
    "mean_reputation",
    "conditional_loss",
    "uncertain_fraction",
)


class Corpus:
    """Draws training texts from one seeded generator."""

    def __init__(self, seed: int) -> None:
        """Makes the generator; the same seed gives the same texts."""
        self._random = random.Random(seed)
        self._sentences = [s.strip() for s in ENGLISH.replace("\n", " ").split(".") if s.strip()]
        self._words = WORDS.split()

    def texts(self) -> Iterator[str]:
        """Yields prompts, answers and English in a fixed order."""
        for _ in range(12):
            yield ENGLISH
        for round_number in range(40):
            for persona in PersonaType:
                observation = self._observation(f"{persona.value}_{round_number % 9 + 1}")
                yield from build_action_prompt(persona, observation, memory=self._memory())
                yield from build_accept_prompt(persona, self._proposal(), observation)
                yield from build_kernel_action_prompt(persona, observation)
                yield json.dumps(self._action(), indent=2)
                yield json.dumps(self._action())
                yield json.dumps({"accept": True, "reasoning": self._sentence()}, indent=2)
                yield json.dumps({"accept": False, "reasoning": self._sentence()})
            yield " ".join(["", *self._words])
            if round_number % 8 == 0:
                yield " ".join(["", *map(str.capitalize, self._words)])

    def _sentence(self) -> str:
        if self._random.random() < 0.5:
            return self._random.choice(self._sentences) + "."
        return " ".join(self._random.choices(self._words, k=8)).capitalize() + "."

    def _id(self) -> str:
        return "".join(self._random.choices(string.hexdigits[:16], k=8))

    def _agent(self) -> str:
        return f"{self._random.choice(AGENT_KINDS)}_{self._random.randint(1, 12)}"

    def _action(self) -> dict[str, object]:
        kind = self._random.choice(list(ACTIONS))
        values: dict[str, object] = {
            "content": self._sentence(),
            "post_id": self._id(),
            "task_id": self._id(),
            "direction": self._random.choice((1, -1)),
            "counterparty_id": self._agent(),
            "interaction_type": self._random.choice(INTERACTION_TYPES),
        }
        params = {name: values[name] for name in ACTIONS[kind]}
        return {"action_type": kind, "reasoning": self._sentence(), "params": params}

    def _proposal(self) -> dict[str, object]:
        return {
            "proposal_id": self._id(),
            "initiator_id": self._agent(),
            "interaction_type": self._random.choice(INTERACTION_TYPES),
            "content": self._sentence(),
            "offered_transfer": self._random.uniform(0, 10),
        }

    def _memory(self) -> list[dict[str, object]]:
        return [
            {
                "type": "interaction_outcome",
                "counterparty": self._agent(),
                "p": self._random.random(),
                "payoff": self._random.uniform(-1, 1),
                "accepted": self._random.random() < 0.5,
            }
            for _ in range(5)
        ]

    def _observation(self, agent_id: str) -> Observation:
        uniform = self._random.uniform
        return Observation(
            agent_state=AgentState(
                agent_id=agent_id, reputation=uniform(-1, 1), total_payoff=uniform(-5, 20)
            ),
            current_epoch=self._random.randint(0, 20),
            current_step=self._random.randint(0, 20),
            can_vote=self._random.random() < 0.9,
            visible_posts=[
                {
                    "post_id": self._id(),
                    "author_id": self._agent(),
                    "content": self._sentence(),
                    "score": self._random.randint(-3, 9),
                }
                for _ in range(5)
            ],
            pending_proposals=[self._proposal() for _ in range(2)],
            available_tasks=[
                {"task_id": self._id(), "prompt": self._sentence(), "reward": uniform(1, 9)}
                for _ in range(3)
            ],
            active_tasks=[
                {"task_id": self._id(), "prompt": self._sentence(), "status": "in_progress"}
            ],
            visible_agents=[
                {
                    "agent_id": self._agent(),
                    "reputation": uniform(-1, 1),
                    "resources": uniform(0, 200),
                }
                for _ in range(10)
            ],
            ecosystem_metrics={name: uniform(0, 1) for name in METRICS},
        )


def train() -> dict[str, object]:
    """Trains the tokenizer.

    Returns:
        The special tokens and, in rank order, the merges, as `left right` in the byte-level
        alphabet of GPT-2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(Corpus(seed=0).texts(), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "pre": "smollm",
        "special_tokens": list(SPECIAL_TOKENS),
        "merges": [" ".join(pair) for pair in merges],
    }


def main() -> None:
    """Writes the tokenizer file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    text = json.dumps(train(), ensure_ascii=False, indent=0)
    arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
