"""Subjects and values of the statements that are planted in a book."""

TRADES = (
    "apothecary bricklayer cartographer chandler collier cooper cutler draper drover "
    "engraver falconer farrier fishmonger florist furrier glassblower glazier "
    "goldsmith haberdasher hatter herbalist jeweller juggler lamplighter locksmith "
    "mason milliner miller muleteer organist ostler perfumer piper plasterer plumber "
    "potter printer ropemaker saddler sexton shipwright silversmith spinner stationer "
    "stonecutter tanner tinker upholsterer weaver wheelwright whitesmith woodcutter "
    "astronomer beekeeper bookbinder clockmaker gunsmith hypnotist photographer "
    "tailor trumpeter ventriloquist"
).split()
THINGS = (
    "archway billboard birdcage bungalow cabinet caravan cellar chalet cupboard "
    "dormitory elevator fireplace flagpole footbridge garage gazebo greenhouse hangar "
    "hydrant icehouse kiosk laundry locker lorry mailbox marquee microscope "
    "motorcycle observatory orchestra pavilion piano platform podium postbox pylon "
    "rowboat sawmill sidecar signpost silo taxi telegraph telescope tollgate tramcar "
    "turnstile typewriter vineyard warehouse windmill airship ambulance bakery "
    "barracks carousel casino crypt drawbridge escalator gymnasium igloo jukebox "
    "library motorboat nursery quarry railcar skylight tractor"
).split()
LOST = (
    "accordion amulet anorak armband backpack banjo barometer bracelet brooch bugle "
    "bullion cameo clarinet cufflink diary dulcimer earring flute gramophone guitar "
    "harmonica headscarf kimono lantern lute mandolin medal medallion mitten monocle "
    "necklace notebook oboe parasol passport pendant pincushion piccolo raincoat "
    "rosary rucksack satchel scabbard sextant stopwatch tambourine thimble tiara "
    "trombone viola wristwatch zither"
).split()
NAMES = (
    "Aldous Anselm Benedikt Casimir Dorothea Ephraim Florian Gwendolyn Hortensia "
    "Ingrid Jocasta Konstantin Leopold Lavinia Marguerite Mirabel Nathanael Odette "
    "Ottoline Perpetua Quentin Rosalba Rupert Sigmund Sieglinde Theodora Tobias "
    "Ulrich Valeria Vladimir Wilhelmina Xavier Yolanda Zenobia"
).split()
PLACES = (
    "Antwerp Bergen Bratislava Cordoba Debrecen Dunedin Edmonton Freetown Gdansk "
    "Helsinki Innsbruck Jakarta Krakow Ljubljana Lucerne Montevideo Nairobi Oslo "
    "Palermo Poznan Quito Reykjavik Rosario Salzburg Tallinn Tampere Uppsala "
    "Valparaiso Vilnius Winnipeg Yerevan Zagreb"
).split()
GOODS = (
    "almonds apricots barley caraway cardamom chestnuts cinnamon cloves cocoa figs "
    "gherkins ginger hazelnuts lentils linseed marzipan mustard nutmeg oregano "
    "paprika peanuts pistachios quinces rhubarb saffron sesame spinach thyme turmeric "
    "vanilla aniseed artichokes cashews coriander cranberries fennel lavender "
    "molasses papayas raisins tapioca"
).split()
