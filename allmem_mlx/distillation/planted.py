"""Facts that are stated in one of several ways, with questions much later.

None of the names, places and phrases of :mod:`allmem_mlx.evaluation.recall_tasks` is
here.
"""

import random
from dataclasses import dataclass

NAMES = (
    "Abel Ada Adam Agnes Albert Alma Amos Anna Arthur Astrid Barnaby Beatrix Bella "
    "Bernard Bruno Carmen Cecil Clara Conrad Cora Cyrus Daphne Dora Edgar Edith "
    "Elias Ella Ernest Esther Ezra Felix Fiona Flora Frances George Gilbert Gloria "
    "Greta Gustav Hannah Harold Hector Helen Henry Hilda Hugo Ida Igor Irene Isaac "
    "Ivan Jasper Joan Joseph Judith Karl Laura Leo Lewis Lola Lucy Luther Mabel "
    "Magnus Marcus Martha Max Mildred Miriam Nadia Nathan Nina Nora Oliver Olga "
    "Oscar Otto Paul Pearl Peter Phoebe Rachel Ralph Rosa Rufus Ruth Samuel Sarah "
    "Silas Simon Sophie Stella Thomas Ursula Vera Victor Viola Walter Wanda Wilfred "
    "Yvonne Zelda"
).split()
WORDS = (
    "apple arrow beacon bell bottle bronze butter button cabin camel canoe carpet "
    "cedar chalk cherry clock cloud copper coral cotton crown crystal diamond dragon "
    "drum ember falcon feather fiddle flame ginger glass glove gold granite hammer "
    "harp honey horn iron ivory jewel lemon lily lion marble meadow mirror moon oak "
    "olive orange owl paper pearl piano pigeon pine plum raven river rocket rose "
    "salmon sand scarf silk silver spider spoon star stone storm sugar thunder tiger "
    "tower tulip turtle velvet violet walnut water whale willow wolf wool"
).split()
PLACES = (
    "Aberdeen Athens Basel Belfast Bergen Bombay Boston Bremen Bristol Brussels Cairo "
    "Calcutta Chester Cologne Cork Cracow Damascus Delhi Dover Dresden Dublin Exeter "
    "Florence Geneva Genoa Ghent Glasgow Hamburg Havana Lima Lisbon Liverpool London "
    "Lyons Madrid Malta Marseilles Milan Moscow Munich Naples Odessa Oxford Paris Pisa "
    "Plymouth Prague Riga Rome Rotterdam Seville Smyrna Stockholm Toledo Trieste Turin "
    "Venice Vienna Warsaw York Zurich"
).split()
PEOPLE = (
    "actor admiral baker banker barber bishop butcher captain carpenter clerk cook "
    "coachman dentist doctor driver farmer fisherman gardener hunter innkeeper judge "
    "king lawyer librarian mayor merchant miller miner monk nurse painter pilot porter "
    "poet postman priest prince sailor schoolmaster sculptor sergeant shepherd singer "
    "smith soldier surgeon tailor thief trader waiter weaver widow witch"
).split()
THINGS = (
    "bag bed boat book box cart chest cup door dress garden gate hat house key knife "
    "letter map painting picture pipe purse ring room rope shop sword table ticket "
    "train trunk umbrella wagon watch"
).split()
SYLLABLES = (
    "al an ar bel bor cas dan del dor el fen gar hal in kel lan lor mar mel nor or pen "
    "ra rin sal sel tan tor ul var vin wen"
).split()
# The phrase between "The" and "is", and the kind of value.
PHRASES = (
    ("wife of the {person}", "name"),
    ("brother of the {person}", "name"),
    ("sister of {name}", "name"),
    ("best friend of {name}", "name"),
    ("owner of the {thing}", "name"),
    ("person who found the {thing}", "name"),
    ("person who sold the {thing}", "name"),
    ("weight of the {thing}", "number"),
    ("age of the {person}", "number"),
    ("secret code of {name}", "number"),
    ("price of the {thing}", "number"),
    ("house number of the {person}", "number"),
    ("city where the {person} was born", "place"),
    ("city where the {thing} was found", "place"),
    ("village where {name} was married", "place"),
    ("birthplace of {name}", "place"),
    ("home of the {person}", "place"),
    ("password of {name}", "word"),
    ("favourite thing of the {person}", "word"),
    ("sign on the {thing}", "word"),
)
HELD_OUT = (
    ("magic number of {name}", "number"),
    ("teacher of the {person}", "name"),
    ("port where the {thing} was lost", "place"),
    ("secret word of {name}", "word"),
)
FORMS = (
    "The {phrase} is {value}.",
    "The {phrase} was {value}.",
    "{value} is the {phrase}.",
    "It was well known that the {phrase} was {value}.",
    "As for the {phrase}, it is {value}.",
    "The {phrase}: {value}.",
)


@dataclass(frozen=True)
class Fact:
    """A statement, and a question about it.

    Args:
        phrase (str): the subject of the statement.
        value (str): the answer to the question.
        form (str): one of :data:`FORMS`.
    """

    phrase: str
    value: str
    form: str = FORMS[0]

    @property
    def statement(self) -> str:
        return self.form.format(phrase=self.phrase, value=self.value)

    @property
    def question(self) -> str:
        return f"What is the {self.phrase}?"

    @property
    def beginning(self) -> str:
        """The response up to the value."""
        return f"The {self.phrase} is"


def _value(kind: str, draw: random.Random) -> str:
    if kind == "number":
        return str(draw.randrange(10, 10 ** draw.randrange(2, 6)))
    if kind == "place":
        return draw.choice(PLACES)
    if kind == "word":
        return draw.choice(WORDS)
    first = draw.choice(NAMES)
    made_up = "".join(draw.choices(SYLLABLES, k=draw.randrange(2, 4))).capitalize()
    return draw.choice((first, made_up, f"{first} {made_up}"))


def draw_facts(count: int, draw: random.Random, held_out: bool = False) -> list[Fact]:
    """Facts about different things.

    Args:
        count (int): number of facts.
        draw (random.Random): source of randomness.
        held_out (bool): use phrases that are not trained on.
    """
    facts: dict[str, Fact] = {}
    while len(facts) < count:
        phrase, kind = draw.choice(HELD_OUT if held_out else PHRASES)
        phrase = phrase.format(
            name=draw.choice(NAMES),
            person=draw.choice(PEOPLE),
            thing=draw.choice(THINGS),
        )
        form = FORMS[0] if draw.random() < 0.5 else draw.choice(FORMS)
        facts[phrase] = Fact(phrase, _value(kind, draw), form)
    return list(facts.values())
