"""Words of planted facts that a person can read: who does what. "Baker slices buttery bagels." No word stands twice."""

from transpooler.benchmarks.quality.needles import Words

_NOTES = {
    "Captain": (
        "hides buries guards steals polishes trades inherits sketches hoists wraps sinks",
        "golden rusty silver cursed cracked ancient heavy jeweled salty crooked brass",
        "compass. anchor. treasure. parrot. cannon. lantern. barrel. rudder. telescope. hammock. necklace.",
    ),
    "Gardener": (
        "plants waters trims picks digs harvests prunes sows rakes shades fences",
        "purple thorny fragrant tiny wilted tropical crimson leafy spotted frosty climbing",
        "roses. tulips. pumpkins. ferns. orchids. cabbages. lilies. radishes. mushrooms. cherries. daisies.",
    ),
    "Baker": (
        "slices kneads glazes burns frosts devours delivers salts whips toasts weighs",
        "buttery crusty sugary warm stale nutty fluffy spicy frozen sticky braided",
        "bagels. pretzels. muffins. pies. waffles. biscuits. pancakes. donuts. croissants. cookies. rolls.",
    ),
    "Painter": (
        "admires copies frames sells varnishes scrubs signs photographs rents borrows donates",
        "gloomy abstract colorful giant faded famous unfinished round blurry priceless striped",
        "portrait. mural. landscape. fresco. statue. poster. mosaic. vase. ceiling. postcard. canvas.",
    ),
}
"""Who -> verbs, adjectives, things; CHOICES of each."""

NOTES = Words(
    fields=list(_NOTES),
    facts=[[choices.split() for choices in places] for places in _NOTES.values()],
    filler=[],
)
