"""The same facts in other words: a rule that makes a statement and a question that
share no content word."""

import re

# Statements and their questions. A statement has one of {name}, {place} and {number},
# which is the answer; _ stands for its subject.
FORMS = (
    ("The _ resides in {place}.", "Where is the home of the _?"),
    ("Every _ here obeys {name}.", "Who gives orders to the _?"),
    ("That _ weighs {number} pounds.", "How heavy is the _?"),
)

# A subject in the statement and in the question, for the forms in turn.
PAIRS = [
    tuple(pair.split("/"))
    for pair in (
        "physician/doctor policeman/constable automobile/car attorney/lawyer "
        "infant/baby sofa/couch aviator/pilot burglar/thief bicycle/bike "
        "chemist/pharmacist sailor/mariner refrigerator/fridge teacher/schoolmaster "
        "soldier/warrior carpet/rug shoemaker/cobbler pupil/student stove/oven "
        "hairdresser/barber assistant/helper television/tv clergyman/priest "
        "peasant/farmer suitcase/luggage novelist/writer maid/servant rifle/gun "
        "interpreter/translator guard/sentry rock/boulder psychiatrist/therapist "
        "lad/boy statue/sculpture dressmaker/seamstress foreigner/stranger "
        "parcel/package undertaker/mortician labourer/worker dagger/knife "
        "fiddler/violinist inmate/prisoner pan/pot monarch/king visitor/guest "
        "trunk/chest merchant/trader tramp/vagrant desk/table author/poet kid/child "
        "cask/barrel spouse/wife hunter/trapper sack/bag actor/performer "
        "dancer/ballerina vessel/ship chef/cook pirate/buccaneer stone/gem"
    ).split()
]

# Words without content.
STOP_WORDS = set(
    "a about all an and any are as at be been but by can did do does for from had has "
    "have he her here him his how i if in into is it its me my no not now of on or our "
    "she so some than that the their them then there they this to up was we were what "
    "when where which who whom whose why will with would you your every gives".split()
)


def content_words(text: str) -> set[str]:
    """The content words of a text, by their first five letters."""
    words = re.findall(r"\w+", text.lower())
    return {word[:5] for word in words if word not in STOP_WORDS}
